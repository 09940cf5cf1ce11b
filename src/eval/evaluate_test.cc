#include "eval/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "base/test_path.h"
#include "eval/eval_tasks.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

std::vector<EvalSample> passkeys(const Model& model) {
  auto samples =
      make_eval_samples("passkey", model.tokenizer(),
                        {.max_context = 2048, .context_lengths = {170, 300}, .num_samples = 3});
  for (EvalSample& sample : samples) sample.max_new_tokens = 3;
  return samples;
}

int64_t num_lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

void expect_same(const std::vector<SpecResults>& a, const std::vector<SpecResults>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t s = 0; s < a.size(); ++s) {
    EXPECT_EQ(a[s].spec.text, b[s].spec.text);
    for (size_t i = 0; i < a[s].results.size(); ++i) {
      EXPECT_EQ(a[s].results[i].compressed_tokens, b[s].results[i].compressed_tokens);
      EXPECT_EQ(a[s].results[i].extra, b[s].results[i].extra);
      EXPECT_EQ(a[s].results[i].answers, b[s].results[i].answers);
      EXPECT_EQ(a[s].results[i].scores, b[s].results[i].scores);
    }
  }
}

TEST(Evaluate, PutsFp16First) {
  Model model = Model::load(kEmbedded);
  const auto samples = passkeys(model);
  SampleLog log;
  const auto results = evaluate_samples(
      model, samples,
      {.specs = {parse_spec("nuq3-1%"), parse_spec("fp16")}, .ubatch = 64, .program = "test"}, log);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].spec.text, "fp16");
  EXPECT_EQ(results[1].spec.text, "nuq3-1%");
  EXPECT_EQ(results[0].results[0].compressed_tokens, 0);
  EXPECT_GT(results[1].results[0].compressed_tokens, 0);
  EXPECT_EQ(results[1].results.size(), samples.size());
}

// A kill leaves a prefix of the file, the last line perhaps cut.
TEST(Evaluate, GoesOnAfterAKillWithTheSameResults) {
  Model model = Model::load(kEmbedded);
  const auto samples = passkeys(model);
  const std::string path = test::test_path("samples.jsonl");
  for (const int64_t batch_size : {1, 2}) {
    const EvaluationOptions options{.specs = {parse_spec("nuq3-1%")},
                                    .ubatch = 64,
                                    .batch_size = batch_size,
                                    .program = "test"};
    std::filesystem::remove(path);
    SampleLog first(path);
    const auto expected = evaluate_samples(model, samples, options, first);
    const std::string whole = read_text(path);
    EXPECT_EQ(num_lines(whole), 12);

    for (const size_t size : {whole.size(), whole.size() * 2 / 3, whole.size() / 5}) {
      write_file_atomic(path, whole.substr(0, size));
      int64_t total = 0;
      SampleLog log(path);
      expect_same(evaluate_samples(model, samples, options, log,
                                   [&](int64_t, int64_t tokens) { total = tokens; }),
                  expected);
      EXPECT_EQ(total == 0, size == whole.size());
      if (batch_size == 1) {
        EXPECT_EQ(read_text(path), whole) << size;
      }
    }
    SampleLog log(path);
    EvaluationOptions other = options;  // nothing of another model, arithmetic or program is taken
    other.program = "test 2";
    int64_t total = 0;
    evaluate_samples(model, samples, other, log, [&](int64_t, int64_t tokens) { total = tokens; });
    EXPECT_GT(total, 0);
  }
}

TEST(Evaluate, KeepsWhatWasDoneWhenItIsInterrupted) {
  Model model = Model::load(kEmbedded);
  const auto samples = passkeys(model);
  const std::string path = test::test_path("samples.jsonl");
  std::filesystem::remove(path);
  SampleLog log(path);
  EXPECT_THROW(evaluate_samples(model, samples, {.ubatch = 64, .program = "test"}, log,
                                [](int64_t done, int64_t total) {
                                  if (done > total / 2) throw std::runtime_error("stop");
                                }),
               std::runtime_error);
  const int64_t lines = num_lines(read_text(path));
  EXPECT_GE(lines, 2);
  EXPECT_LT(lines, 6);
}

TEST(Evaluate, RefusesNoSamplesAndSpecsThatDontFit) {
  Model model = Model::load(kEmbedded);
  SampleLog log;
  EXPECT_THROW(evaluate_samples(model, {}, {}, log), std::invalid_argument);
  EXPECT_THROW(
      evaluate_samples(model, passkeys(model), {.specs = {parse_spec("nuq3,layers=90:fp16")}}, log),
      std::invalid_argument);
}

TEST(Summarise, CountsQuestionsByTaskCellAndSeed) {
  std::vector<EvalSample> samples;
  SpecResults results, baseline;
  const auto add = [&](const std::string& task, EvalCell cell, uint64_t seed,
                       std::vector<double> scores, std::vector<double> base) {
    samples.push_back({.task = task, .group = "g", .cell = cell, .seed = seed});
    results.results.push_back({.scores = std::move(scores)});
    baseline.results.push_back({.scores = std::move(base)});
  };
  add("b", {4096, 0.5}, 1, {1}, {1});
  add("b", {2048, 0.5}, 1, {0}, {1});
  add("b", {2048, 0.5}, 2, {1}, {1});
  add("b", {2048, 0.1}, 2, {1}, {1});
  add("a", {2048, -1}, 1, {1, 0, 0.5}, {1, 1, 1});
  const auto summaries = summarise(samples, results, baseline);
  ASSERT_EQ(summaries.size(), 3u);
  const TaskSummary& b = summaries[0];
  EXPECT_EQ(b.task, "b");
  EXPECT_EQ(b.scores.mean, 0.75);
  EXPECT_EQ(b.seeds, (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(b.runs.mean, 0.75);
  EXPECT_NEAR(b.runs.sd, std::sqrt(0.125), 1e-12);  // of 0.5 and 1
  ASSERT_EQ(b.cells.size(), 3u);
  EXPECT_EQ(b.cells[0].cell, (EvalCell{2048, 0.1}));
  EXPECT_EQ(b.cells[1].count, 2);
  EXPECT_EQ(b.cells[1].mean, 0.5);
  EXPECT_EQ(b.versus_baseline.mcnemar.num_lost, 1);
  EXPECT_EQ(summaries[1].scores.count, 3);
  EXPECT_FALSE(summaries[1].versus_baseline.is_right_or_wrong);
  EXPECT_EQ(b.runs_versus_baseline.mean, -0.25);  // 0.5 and 1 against 1 and 1
  EXPECT_TRUE(summaries[2].is_group);
  EXPECT_EQ(summaries[2].task, "g");
  EXPECT_EQ(summaries[2].scores.count, 7);
  EXPECT_EQ(summaries[2].metric, "contains");
}

TEST(RunSeeds, AreThePublishedOnesAndThenOthers) {
  EXPECT_EQ(run_seeds(42, 6), (std::vector<uint64_t>{42, 123, 456, 789, 101112, 101113}));
  EXPECT_EQ(run_seeds(7, 2), (std::vector<uint64_t>{7, 123}));
  EXPECT_EQ(run_seeds(123, 3), (std::vector<uint64_t>{123, 456, 789}));
}

}  // namespace
}  // namespace kvquant
