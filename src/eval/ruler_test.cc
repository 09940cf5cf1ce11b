#include "eval/ruler.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "base/test_path.h"
#include "eval/test_tokenizer.h"
#include "eval/word_lists.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::embedded_tokenizer;

EvalTaskOptions small_options(int64_t length) {
  return {.max_context = 8192,
          .context_lengths = {length},
          .num_samples = 2,
          .haystack = test::source_text("assets/sample.txt")};
}

// The prompt behind all examples: what the answer has to be derived from.
std::string text_of(const EvalSample& sample) {
  const std::string text = embedded_tokenizer().decode(sample.context);
  for (const char* marker : {"\n\nNow the text:", "\n\nNow the list:\n"}) {
    const size_t at = text.find(marker);
    if (at != std::string::npos) return text.substr(at + std::string(marker).size());
  }
  return text;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::vector<std::string> sorted(std::vector<std::string> values) {
  std::sort(values.begin(), values.end());
  return values;
}

// Samples are as long as they may be, less what one more piece of the haystack would take.
void check_length(const EvalSample& sample, int64_t length, int64_t largest_piece) {
  RC_ASSERT(num_tokens(sample) <= length);
  RC_ASSERT(num_tokens(sample) > length - largest_piece);
}

EvalTaskOptions drawn_options() {
  EvalTaskOptions options = small_options(*rc::gen::inRange<int64_t>(1100, 5000));
  options.seed = *rc::gen::arbitrary<uint64_t>();
  if (*rc::gen::arbitrary<bool>()) options.format = chat_format_named("chatml");
  return options;
}

RC_GTEST_PROP(Ruler, EveryNeedleTellsItsKeyOnce, ()) {
  const EvalTaskOptions options = drawn_options();
  const auto plans = niah_plans();
  const NiahPlan plan = plans[*rc::gen::inRange<size_t>(0, plans.size())];
  const auto samples = make_eval_samples(plan.task, embedded_tokenizer(), options);
  RC_ASSERT(samples.size() == 2u);
  for (const EvalSample& sample : samples) {
    check_length(sample, options.context_lengths[0], 110);  // the longest sentence
    RC_ASSERT(sample.max_new_tokens == 128);
    RC_ASSERT(sample.stop == EvalStop::kNothing);
    const std::string text = text_of(sample);
    const std::string asked = embedded_tokenizer().decode(sample.questions.at(0).tokens);
    const auto& references = sample.questions[0].references;
    RC_ASSERT(std::ssize(references) == plan.num_queries * plan.num_values);
    for (const std::string& value : references) {
      const size_t at = text.find(value);
      RC_ASSERT(at != std::string::npos);
      RC_ASSERT(text.find(value, at + 1) == std::string::npos);
      RC_ASSERT(value.size() == (plan.value == NiahPlan::Part::kUuid ? 36u : 7u));
      // "The secret number of KEY is VALUE": the key is what is asked for.
      const std::string before = text.substr(0, at);
      RC_ASSERT(before.ends_with(" is "));
      const size_t of = before.rfind(" of ");
      const std::string key = before.substr(of + 4, before.size() - of - 8);
      RC_ASSERT(asked.find(key) != std::string::npos);
      RC_ASSERT(asked.find(value) == std::string::npos);
    }
  }
}

RC_GTEST_PROP(Ruler, ChainsLeadFromTheValueToAllVariables, ()) {
  const EvalTaskOptions options = drawn_options();
  for (const EvalSample& sample : make_eval_samples("vt", embedded_tokenizer(), options)) {
    check_length(sample, options.context_lengths[0], 32);
    RC_ASSERT(sample.max_new_tokens == 30);
    const std::string asked = embedded_tokenizer().decode(sample.questions.at(0).tokens);
    const std::string value = asked.substr(asked.find("the value ") + 10, 5);
    std::set<std::string> reached = {value};
    std::vector<std::string> names;
    const auto words = words_of(text_of(sample));
    for (size_t i = 0; i + 4 < words.size(); ++i) {
      if (words[i] != "Set") continue;
      RC_ASSERT(words[i + 1] == "VAR");
      const std::string from = words[i + (words[i + 4] == "VAR" ? 5 : 4)];
      if (!reached.contains(from.substr(0, 5))) continue;
      reached.insert(words[i + 2]);
      names.push_back(words[i + 2]);
    }
    RC_ASSERT(names == sample.questions[0].references);
    RC_ASSERT(names.size() == 5u);
  }
}

std::map<std::string, int> counts_of(const std::vector<std::string>& words) {
  std::map<std::string, int> counts;
  for (const auto& word : words) ++counts[word];
  return counts;
}

RC_GTEST_PROP(Ruler, CommonWordsAreTheMostFrequentOnes, ()) {
  const EvalTaskOptions options = drawn_options();
  const bool is_short = options.context_lengths[0] < 4096;
  for (const EvalSample& sample : make_eval_samples("cwe", embedded_tokenizer(), options)) {
    check_length(sample, options.context_lengths[0], 3 * 16);
    RC_ASSERT(sample.max_new_tokens == 120);
    auto words = words_of(text_of(sample));
    std::vector<std::string> list;
    for (size_t i = 0; i < words.size(); i += 2) {
      RC_ASSERT(words[i] == std::to_string(i / 2 + 1) + ".");
      list.push_back(words.at(i + 1));
    }
    std::vector<std::string> common;
    for (const auto& [word, count] : counts_of(list)) {
      RC_ASSERT(count == (is_short ? 1 : 3) || count == (is_short ? 6 : 30));
      if (count == (is_short ? 6 : 30)) common.push_back(word);
    }
    RC_ASSERT(common == sorted(sample.questions.at(0).references));
    RC_ASSERT(common.size() == 10u);
  }
}

RC_GTEST_PROP(Ruler, CodedWordsFollowZipfsLaw, ()) {
  const EvalTaskOptions options = drawn_options();
  const int64_t length = options.context_lengths[0];
  for (const EvalSample& sample : make_eval_samples("fwe", embedded_tokenizer(), options)) {
    check_length(sample, length, length / 10);
    RC_ASSERT(sample.max_new_tokens == 50);
    const std::string text = text_of(sample);
    const auto counts = counts_of(words_of(text.substr(text.find("\n\n") + 2)));
    std::vector<std::pair<int, std::string>> ranks;
    for (const auto& [word, count] : counts) {
      RC_ASSERT(word == "..." || word.size() == 6u);
      ranks.emplace_back(-count, word);
    }
    std::sort(ranks.begin(), ranks.end());
    RC_ASSERT(ranks.size() <= static_cast<size_t>(length / 50));
    RC_ASSERT(ranks.at(0).second == "...");
    std::vector<std::string> answer;
    for (size_t i = 1; i <= 3; ++i) answer.push_back(ranks.at(i).second);
    RC_ASSERT(sorted(answer) == sorted(sample.questions.at(0).references));
    RC_ASSERT(ranks.at(3).first < ranks.at(4).first);  // no tie
    const double ratio = static_cast<double>(ranks[0].first) / ranks[1].first;
    RC_ASSERT(3.5 < ratio);
    RC_ASSERT(ratio < 4.6);
  }
}

constexpr const char* kSquad = R"({"data": [
  {"paragraphs": [
    {"context": "The mill was built by Ada Fern.", "qas": [
      {"question": "Who built the mill?", "answers": [{"text": "Ada Fern"}, {"text": "Ada Fern"}]},
      {"question": "Who sold it?", "answers": []}]},
    {"context": "The mill has three wheels.", "qas": []}]},
  {"paragraphs": [
    {"context": "A comet passed in 1907.", "qas": [
      {"question": "When did a comet pass?", "answers": [{"text": "1907"}, {"text": "in 1907"}]}]}]}
]})";
constexpr const char* kHotpot = R"([
  {"question": "Which is older?", "answer": "the mill",
   "supporting_facts": [["Mill", 0], ["Inn", 0]],
   "context": [["Mill", ["It is old. ", "Very old."]], ["Inn", ["It is new."]],
               ["Lake", ["It is deep."]]]}])";

TEST(Ruler, QuestionsStandAmongAllDocumentsThatFit) {
  const std::string path = test::test_path("qa.json");
  for (const char* file : {kSquad, kHotpot}) {
    write_file_atomic(path, file);
    EvalTaskOptions options = small_options(400);
    options.num_samples = 500;
    options.data = {{"qa_1", path}};
    const auto samples = make_eval_samples("qa_1", embedded_tokenizer(), options);
    ASSERT_EQ(samples.size(), file == kSquad ? 2u : 1u);
    const std::string text = text_of(samples[0]);
    EXPECT_EQ(samples[0].metric, EvalMetric::kAnyContained);
    EXPECT_EQ(samples[0].max_new_tokens, 32);
    for (const char* part : {"\n\nDocument 1:\n", "\n\nDocument 2:\n", "\n\nDocument 3:\n"}) {
      EXPECT_NE(text.find(part), std::string::npos) << text;
    }
    EXPECT_EQ(text.find("Document 4"), std::string::npos);
    options.context_lengths = {110};  // its own documents alone
    try {
      const auto few = make_eval_samples("qa_1", embedded_tokenizer(), options);
      EXPECT_LE(num_tokens(few[0]), 110);
      EXPECT_NE(text_of(few[0]).find(file == kSquad ? "Ada Fern" : "It is old. Very old."),
                std::string::npos);
    } catch (const std::invalid_argument& error) {
      EXPECT_EQ(file, kHotpot);
      EXPECT_NE(std::string(error.what()).find("question 1 of " + path), std::string::npos);
    }
  }
  write_file_atomic(path, R"([{"question": "q", "answer": "a"}])");
  EvalTaskOptions options = small_options(400);
  EXPECT_THROW(make_eval_samples("qa_2", embedded_tokenizer(), options), std::invalid_argument);
  options.data = {{"qa_2", path}};
  EXPECT_THROW(make_eval_samples("qa_2", embedded_tokenizer(), options), FormatError);
}

TEST(Ruler, ReadsItsOwnFilesToo) {
  const std::string path = test::test_path("validation.jsonl");
  write_file_atomic(path, R"({"input": "Find it. It is 7.", "outputs": ["7", "8"], "length": 9}
{"input": "Once more", "outputs": ["x"], "answer_prefix": " It is"}
)");
  EvalTaskOptions options = small_options(400);
  options.num_samples = 0;
  options.data = {{"vt", path}};
  const auto samples = make_eval_samples("vt", embedded_tokenizer(), options);
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_EQ(samples[0].questions[0].references, (std::vector<std::string>{"7", "8"}));
  EXPECT_EQ(samples[0].max_new_tokens, 30);
  auto all = samples[1].context;
  append(all, samples[1].questions[0].tokens);
  EXPECT_NE(embedded_tokenizer().decode(all).find("Once more It is"), std::string::npos);
  write_file_atomic(path, "{\"input\": \"x y\", \"outputs\": [\"x\"]}\n\n{\"input\": 3}\n");
  try {
    make_eval_samples("vt", embedded_tokenizer(), options);
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.what(), path + ":3: \"input\" is missing or not a text");
  }
}

TEST(WordLists, HoldEveryWordOnce) {
  std::set<std::string_view> all;
  size_t total = 0;
  for (const auto list : {nouns(), adjectives(), first_names()}) {
    total += list.size();
    all.insert(list.begin(), list.end());
  }
  EXPECT_EQ(all.size(), total);
  EXPECT_GE(nouns().size(), 600u);
}

}  // namespace
}  // namespace kvquant
