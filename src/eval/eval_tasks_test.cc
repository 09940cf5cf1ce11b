#include "eval/eval_tasks.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

#include "eval/prompt_parts.h"
#include "eval/test_tokenizer.h"

namespace kvquant {
namespace {

using test::embedded_tokenizer;

EvalTaskOptions small_options() {
  return {.max_context = 2048,
          .context_lengths = {512},
          .num_samples = 5,
          .num_trials = 2,
          .haystack = test::source_text("assets/sample.txt"),
          .recall_text = test::source_text("assets/sample.txt"),
          .recall_facts = {{"When did the last ferry go?", "October", "It went in"}}};
}

std::string error_of(const std::string& task, const EvalTaskOptions& options) {
  try {
    make_eval_samples(task, embedded_tokenizer(), options);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

int64_t longest_sentence(const std::string& text) {
  size_t longest = 0;
  for (const auto& sentence : encode_sentences(embedded_tokenizer(), text)) {
    longest = std::max(longest, sentence.size());
  }
  return static_cast<int64_t>(longest);
}

// Where the answer begins: share of the context's text.
double place_of(const std::string& context, const std::string& answer) {
  return static_cast<double>(context.find(answer)) / static_cast<double>(context.size());
}

RC_GTEST_PROP(EvalTasks, PasskeysAreHiddenInTheMiddleHalf, ()) {
  EvalTaskOptions options = small_options();
  options.seed = *rc::gen::arbitrary<uint64_t>();
  options.context_lengths = {*rc::gen::inRange<int64_t>(400, 2049)};
  const bool chat = *rc::gen::arbitrary<bool>();
  if (chat) options.format = chat_format_named("chatml");
  const Tokenizer& tokenizer = embedded_tokenizer();
  const auto samples = make_eval_samples("passkey", tokenizer, options);
  RC_ASSERT(samples.size() == 5u);
  for (const EvalSample& sample : samples) {
    RC_ASSERT(num_tokens(sample) <= options.context_lengths[0]);
    RC_ASSERT(num_tokens(sample) > options.context_lengths[0] - 32);  // a sentence of noise
    const std::string text = tokenizer.decode(sample.context);
    const std::string key = sample.questions.at(0).references.at(0);
    RC_ASSERT(key.size() == 5u);
    const std::string needle = "The pass key is the number " + key;
    RC_ASSERT(text.find(needle) != std::string::npos);
    RC_ASSERT(text.find(needle) == text.rfind(needle));
    RC_ASSERT(0.15 < place_of(text, key));
    RC_ASSERT(place_of(text, key) < 0.85);
    RC_ASSERT(tokenizer.decode(sample.questions[0].tokens).find(key) == std::string::npos);
  }
}

RC_GTEST_PROP(EvalTasks, NeedlesStandOnceAtTheirDepth, ()) {
  EvalTaskOptions options = small_options();
  options.seed = *rc::gen::arbitrary<uint64_t>();
  const int64_t length = *rc::gen::inRange<int64_t>(700, 2049);
  options.context_lengths = {length};
  const Tokenizer& tokenizer = embedded_tokenizer();
  static const int64_t longest = longest_sentence(options.haystack);
  const auto samples = make_eval_samples("needle", tokenizer, options);
  RC_ASSERT(samples.size() == 6u);
  for (const EvalSample& sample : samples) {
    RC_ASSERT(num_tokens(sample) <= length);
    RC_ASSERT(num_tokens(sample) > length - longest);
    const std::string text = tokenizer.decode(sample.context);
    const std::string code = sample.questions.at(0).references.at(0);
    RC_ASSERT(text.find(code) != std::string::npos);
    RC_ASSERT(text.find(code) == text.rfind(code));
    const double half_sentence = static_cast<double>(longest) / static_cast<double>(length);
    RC_ASSERT(std::abs(place_of(text, code) - sample.cell.depth) < 0.06 + half_sentence);
  }
  // The same needles and texts at every depth.
  RC_ASSERT(samples[0].questions[0].references == samples[2].questions[0].references);
}

TEST(EvalTasks, NeedlesLeaveTheTokensAroundThemAsTheyWere) {
  EvalTaskOptions options = small_options();
  const Tokenizer& tokenizer = embedded_tokenizer();
  const auto sentences = encode_sentences(tokenizer, options.haystack);
  const auto sample = make_eval_samples("needle", tokenizer, options).at(2);
  const auto needle_begin = tokenizer.decode(sample.context).find(" The code of the ");
  ASSERT_NE(needle_begin, std::string::npos);
  int64_t whole = 0;  // sentences of the haystack that are in the sample's ids as they are
  for (const auto& sentence : sentences) whole += num_occurrences(sample.context, sentence) > 0;
  EXPECT_GE(whole, 8);
}

TEST(EvalTasks, RecallAsksWhatTheTextTells) {
  EvalTaskOptions options = small_options();
  options.context_lengths = {1024, 2048};
  options.recall_facts.push_back({"Who was it?", "Nobody-of-that-name", ""});
  const auto samples = make_eval_samples("recall_story", embedded_tokenizer(), options);
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_EQ(samples[0].questions.size(), 1u);
  EXPECT_LE(num_tokens(samples[0]), 1024);
  EXPECT_GT(samples[1].context.size(), samples[0].context.size());
  options.context_lengths = {300};  // nothing is told that early: it begins further on
  const auto one = make_eval_samples("recall_story", embedded_tokenizer(), options).at(0);
  ASSERT_GE(one.questions.size(), 1u);
  EXPECT_LE(num_tokens(one), 300);
  EXPECT_NE(embedded_tokenizer().decode(one.context).find(one.questions[0].references[0]),
            std::string::npos);
}

TEST(EvalTasks, SamplesDependOnTheSeedAlone) {
  EvalTaskOptions options = small_options();
  const auto ids = [&](const std::string& task) {
    std::vector<std::string> out;
    for (const auto& sample : make_eval_samples(task, embedded_tokenizer(), options)) {
      out.push_back(sample_id(sample));
    }
    return out;
  };
  for (const std::string task : {"passkey", "needle"}) {
    options.seed = 42;
    options.limit = 0;
    const auto first = ids(task);
    EXPECT_EQ(ids(task), first);
    EXPECT_EQ(std::set<std::string>(first.begin(), first.end()).size(), first.size()) << task;
    options.limit = 1;
    EXPECT_EQ(ids(task).at(0), first.at(0));
    EXPECT_EQ(ids(task).size(), task == "needle" ? 3u : 1u);
    options.seed = 43;
    EXPECT_NE(ids(task).at(0), first.at(0));
  }
}

TEST(EvalTasks, StabilityAsksALittleOfEverything) {
  EvalTaskOptions options = small_options();
  options.num_samples = 0;
  const auto samples = make_eval_samples("stability", embedded_tokenizer(), options);
  EXPECT_EQ(samples.size(), 10u);
  EXPECT_EQ(expand_tasks({"stability"}).at(0).num_runs, 5);
  std::set<EvalMetric> metrics;
  for (const EvalSample& sample : samples) metrics.insert(sample.metric);
  EXPECT_EQ(metrics.size(), 2u);
}

TEST(EvalTasks, TheLengthsAreThoseTheModelCanRead) {
  EvalTaskOptions options = small_options();
  options.context_lengths = {};
  options.limit = 1;
  options.max_context = 5000;
  const auto samples = make_eval_samples("passkey", embedded_tokenizer(), options);
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_EQ(samples[0].cell.length, 2048);
  EXPECT_EQ(samples[1].cell.length, 4096);
}

TEST(EvalTasks, GroupsAreTakenApart) {
  const auto names_of = [](const std::vector<std::string>& names) {
    std::vector<std::string> out;
    for (const EvalTaskInfo& info : expand_tasks(names)) out.push_back(info.name);
    return out;
  };
  EXPECT_EQ(names_of({"ruler"}),
            (std::vector<std::string>{"niah_single_1", "niah_single_2", "niah_single_3",
                                      "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
                                      "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
                                      "qa_1", "qa_2"}));
  EXPECT_EQ(names_of({"vt", "passkey"}), (std::vector<std::string>{"vt", "passkey"}));
  EXPECT_THROW(expand_tasks({"ruler", "vt"}), std::invalid_argument);
  EXPECT_THROW(expand_tasks({""}), std::invalid_argument);
}

TEST(EvalTasks, RefuseWhatCannotBe) {
  EvalTaskOptions options = small_options();
  EXPECT_EQ(error_of("pass", options),
            "there is no task \"pass\": passkey, needle, stability, recall, ruler, longbench, "
            "leval, lm");
  options.context_lengths = {4096};
  EXPECT_EQ(error_of("needle", options),
            "needle: a context of 4096 tokens is not in [1, 2048], the model's");
  options.context_lengths = {64};
  for (const std::string task : {"needle", "passkey", "recall_story"}) {
    EXPECT_EQ(error_of(task, options).find(task + ": a context of 64 tokens is too small: "), 0u)
        << error_of(task, options);
  }
  options.context_lengths = {};
  options.max_context = 1024;
  EXPECT_EQ(error_of("passkey", options),
            "passkey: a context of 1024 tokens is below the shortest length, 2048: give "
            "--context-lengths");
  options = small_options();
  options.haystack = " \n";
  EXPECT_EQ(error_of("needle", options), "needle: the haystack has no text");
}

}  // namespace
}  // namespace kvquant
