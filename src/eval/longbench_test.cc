#include "eval/longbench.h"

#include <gtest/gtest.h>

#include "base/test_path.h"
#include "eval/jsonl.h"
#include "eval/test_tokenizer.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::embedded_tokenizer;

EvalTaskOptions options_of(const std::string& task, const std::string& path) {
  return {.max_context = 300,
          .data = {{task, path}},
          .prompts = {{task, "Read it.\n{context}\nNow {input}\nAnswer:"}}};
}

std::string text_of(const EvalSample& sample, size_t question) {
  auto tokens = sample.context;
  append(tokens, sample.questions.at(question).tokens);
  return embedded_tokenizer().decode(tokens);
}

TEST(LongBench, CutsTheMiddleOfWhatIsTooLong) {
  const std::string path = test::test_path("musique.jsonl");
  std::string context;
  for (int i = 0; i < 300; ++i) context += " w" + std::to_string(i);
  const Json line = {
      {"context", context}, {"input", "say it"}, {"answers", Json::array({"a", "b"})}};
  const Json small = {{"context", "w1"}, {"input", "say it"}, {"answers", Json::array({"c"})}};
  write_file_atomic(path, line.dump() + "\n" + small.dump() + "\n");
  const auto samples =
      make_eval_samples("musique", embedded_tokenizer(), options_of("musique", path));
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_EQ(text_of(samples[1], 0), "Read it.\nw1\nNow say it\nAnswer:");
  EXPECT_EQ(samples[0].max_new_tokens, 32);
  EXPECT_EQ(samples[0].metric, EvalMetric::kQaF1);
  EXPECT_EQ(samples[0].questions[0].references, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(num_tokens(samples[0]), 300);
  const std::string text = text_of(samples[0], 0);
  EXPECT_EQ(text.find("Read it.\n w0 w1 w2"), 0u);
  EXPECT_NE(text.find("w299\nNow say it\nAnswer:"), std::string::npos);
  EXPECT_EQ(text.find("w150"), std::string::npos);
  // Half of the prompt's tokens stand before the cut.
  const auto whole = encode_piece(embedded_tokenizer(), "Read it.\n" + context);
  const size_t half = (300 - 32 - 1) / 2;  // less bos
  EXPECT_TRUE(std::equal(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(half),
                         samples[0].context.begin() + 1));
  EXPECT_NE(whole[half], samples[0].context[half + 1]);
}

TEST(LongBench, AsksAllQuestionsOfADocumentOfLEval) {
  const std::string path = test::test_path("leval.jsonl");
  const auto samples_of = [&](const Json& line) {
    write_file_atomic(path, line.dump());
    return make_eval_samples("leval_quality", embedded_tokenizer(),
                             options_of("leval_quality", path));
  };
  const Json line = {{"input", "A text."},
                     {"instructions", Json::array({"one?", "two?"})},
                     {"outputs", Json::array({"(B) yes", "(A) no"})},
                     {"evaluation", "exam"}};
  const auto samples = samples_of(line);
  ASSERT_EQ(samples.size(), 1u);
  ASSERT_EQ(samples[0].questions.size(), 2u);
  EXPECT_EQ(text_of(samples[0], 1), "Read it.\nA text.\nNow two?\nAnswer:");
  EXPECT_EQ(samples[0].metric, EvalMetric::kOption);
  Json topics = line;
  topics["outputs"] = Json::array({"art", "space"});
  EXPECT_EQ(samples_of(topics)[0].metric, EvalMetric::kContained);
  topics["evaluation"] = "f1";
  EXPECT_EQ(samples_of(topics)[0].metric, EvalMetric::kQaF1);
  topics["outputs"] = Json::array({"art"});
  EXPECT_THROW(samples_of(topics), FormatError);
}

TEST(LongBench, RefusesWhatItCantAsk) {
  const std::string path = test::test_path("qasper.jsonl");
  write_file_atomic(path, R"({"context": "x", "input": "y", "answers": ["z"]}
{"context": "x", "answers": ["z"]})");
  EvalTaskOptions options = options_of("qasper", path);
  EXPECT_THROW(make_eval_samples("qasper", embedded_tokenizer(), options), FormatError);
  options.limit = 1;
  EXPECT_EQ(make_eval_samples("qasper", embedded_tokenizer(), options).size(), 1u);
  options.context_lengths = {130};  // 128 of them for the answer
  EXPECT_THROW(make_eval_samples("qasper", embedded_tokenizer(), options), std::invalid_argument);
  options.context_lengths = {301};
  EXPECT_THROW(make_eval_samples("qasper", embedded_tokenizer(), options), std::invalid_argument);
  options.context_lengths = {};
  options.prompts.clear();
  EXPECT_THROW(make_eval_samples("qasper", embedded_tokenizer(), options), std::invalid_argument);
}

TEST(Prompts, AreOfAllTasks) {
  const auto prompts = read_prompts(KVQUANT_SOURCE_DIR "/assets/eval_prompts.json");
  for (const auto& task : longbench_tasks()) EXPECT_TRUE(prompts.contains(task)) << task;
  for (const auto& task : leval_tasks()) EXPECT_TRUE(prompts.contains(task)) << task;
  const std::string path = test::test_path("prompts.json");
  for (const char* bad : {"", "[]", "{\"a\": 1}"}) {
    write_file_atomic(path, bad);
    EXPECT_THROW(read_prompts(path), FormatError) << bad;
  }
  write_file_atomic(path, R"({"a": "{input} {context}", "b": "{context} {input}"})");
  EXPECT_EQ(read_prompts(path).size(), 1u);  // others are of tasks that there are not
}

}  // namespace
}  // namespace kvquant
