#include "bench/model_bench.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "model/session.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

// What a batched decode step computes is what each sequence gets alone.
TEST(ModelBench, ABatchOfTwoGivesTheTokensOfEachAlone) {
  Model model = Model::load(kEmbedded, {.precision = Precision::kF32});
  Transformer& transformer = model.transformer();
  const int64_t vocab = model.config().vocab_size;
  const auto prompts = {model.tokenizer().encode("Once upon a time there was a little girl"),
                        model.tokenizer().encode("The old man went to the sea, and he saw a boat")};
  constexpr int kSteps = 20;
  for (const char* spec : {"fp16", "nuq4-1%,recent=0"}) {
    SCOPED_TRACE(spec);
    KvCache cache(transformer.kv_shape(), parse_spec(spec), CacheMode::kAsServed,
                  transformer.rope_table(), model.pool());
    std::vector<Generation> alone;
    std::vector<KvCache::SequenceId> ids;
    std::vector<int32_t> next;
    std::vector<float> logits(static_cast<size_t>(2 * vocab));
    for (const auto& prompt : prompts) {
      Session session(model, {.spec = parse_spec(spec)});
      alone.push_back(generate(session, prompt, {.max_tokens = kSteps}));
      ids.push_back(cache.add_sequence());
      const ForwardChunk chunk{ids.back(), prompt};
      const auto hidden = transformer.forward({&chunk, 1}, cache);
      const auto rows = hidden.shape[0];
      transformer.logits(row_major<const float, 2>(&hidden(rows - 1, 0), {1, hidden.shape[1]}),
                         row_major(logits.data(), {1, vocab}));
      next.push_back(argmax(std::span(logits).first(static_cast<size_t>(vocab))));
    }
    for (size_t step = 0; step < kSteps; ++step) {
      for (size_t i = 0; i < 2; ++i) ASSERT_EQ(next[i], alone[i].tokens[step]) << step;
      const std::vector<int32_t> fed = next;
      const ForwardChunk batch[] = {{ids[0], {&fed[0], 1}}, {ids[1], {&fed[1], 1}}};
      const auto hidden = transformer.forward(batch, cache);
      transformer.logits(hidden, row_major(logits.data(), {2, vocab}));
      for (size_t i = 0; i < 2; ++i) {
        const auto size = static_cast<size_t>(vocab);
        next[i] = argmax(std::span(logits).subspan(i * size, size));
      }
    }
  }
}

TEST(ModelBench, RowsComeTestByTestAndSpecBySpec) {
  Model model = Model::load(kEmbedded);
  const ModelBenchOptions options{.prompt_sizes = {16, 0},
                                  .gen_sizes = {2},
                                  .combined_sizes = {{3, 1}},
                                  .depths = {0, 70},
                                  .batches = {1, 2},
                                  .repetitions = 2};
  int64_t last = 0, all = 0;
  const auto rows = bench_model(model, {parse_spec("fp16"), parse_spec("nuq4")}, options,
                                [&](int64_t done, int64_t total) {
                                  EXPECT_GE(done, last);
                                  last = done;
                                  all = total;
                                });
  EXPECT_EQ(last, all);
  std::vector<std::string> names;
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].spec.text, i % 2 == 0 ? "fp16" : "nuq4");
    EXPECT_EQ(rows[i].samples_s.size(), 2u);
    EXPECT_GT(rows[i].tokens_per_s_mean, 0);
    EXPECT_GE(rows[i].peak_cache_bytes, rows[i].cache_bytes);
    if (i % 2 == 0) names.push_back(test_name(rows[i]));
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"pp16", "tg2", "pp3+tg1", "pp16 @ d70", "tg2 @ d70",
                                      "pp3+tg1 @ d70", "pp16 x 2", "tg2 x 2", "pp3+tg1 x 2",
                                      "pp16 @ d70 x 2", "tg2 @ d70 x 2", "pp3+tg1 @ d70 x 2"}));
}

TEST(ModelBench, SummariesAreOfTokensPerSecondAndOfPairs) {
  ModelBenchRow rows[2];
  for (auto& row : rows) {
    row.n_prompt = 10;
    row.n_gen = 5;
    row.batch = 2;
  }
  rows[0].samples_s = {1, 3, 2};
  rows[1].samples_s = {0.5, 3, 0.5};  // 2, 1, 4 times as fast
  summarise(rows);
  EXPECT_DOUBLE_EQ(rows[0].tokens_per_s_mean, (30 + 10 + 15) / 3.0);
  EXPECT_NEAR(rows[0].tokens_per_s_sd, 10.4083, 1e-4);
  EXPECT_DOUBLE_EQ(rows[0].ratio_to_first_spec, 1);
  EXPECT_DOUBLE_EQ(rows[1].ratio_to_first_spec, 2);
  for (auto& row : rows) row.samples_s.pop_back();
  summarise(rows);
  EXPECT_DOUBLE_EQ(rows[1].ratio_to_first_spec, 1.5);
  for (auto& row : rows) row.samples_s.pop_back();
  summarise(rows);
  EXPECT_EQ(rows[0].tokens_per_s_sd, 0);
}

TEST(ModelBench, RepeatsUntilTheErrorIsSmallOrALimitIsReached) {
  Model model = Model::load(kEmbedded);
  const auto count = [&](int repetitions, const RepetitionLimits& limits) {
    const auto rows = bench_model(
        model, {parse_spec("fp16")},
        {.prompt_sizes = {8}, .gen_sizes = {}, .repetitions = repetitions, .limits = limits});
    return rows[0].samples_s.size();
  };
  EXPECT_EQ(count(3, {.warmups = 2}), 3u);
  EXPECT_EQ(count(2, {.target_error = 1e9}), 2u);
  EXPECT_EQ(count(2, {.target_error = 1e-12, .max_repetitions = 7}), 7u);
  EXPECT_EQ(count(5, {.warmups = 3, .max_seconds = 1e-9}), 1u);
  EXPECT_THROW(count(1, {.warmups = 0}), std::invalid_argument);
  EXPECT_THROW(count(1, {.target_error = -1}), std::invalid_argument);
}

TEST(ModelBench, TheErrorIsThatOfTheMean) {
  ModelBenchRow row;
  row.samples_s = {1, 3};
  EXPECT_DOUBLE_EQ(relative_error(row), 1 / 2.0);  // sd of sqrt(2) over sqrt(2), by a mean of 2
  row.samples_s.pop_back();
  EXPECT_TRUE(std::isinf(relative_error(row)));
}

TEST(ModelBench, EnergyIsOfTheRepetitionsThatCount) {
  Model model = Model::load(kEmbedded);
  EnergyMeter meter({.sources = {"/nonexistent", KVQUANT_FAKE_NVML, 0}, .sample_interval_s = 1e6});
  const auto rows =
      bench_model(model, {parse_spec("fp16")},
                  {.prompt_sizes = {8}, .gen_sizes = {}, .repetitions = 4, .energy = &meter});
  EXPECT_DOUBLE_EQ(rows[0].energy.value().energy_joules.value(), 4 * 1.5);
}

TEST(ModelBench, WhatDoesNotFitIsRefused) {
  Model model = Model::load(kEmbedded);
  const auto run = [&](const ModelBenchOptions& options) {
    bench_model(model, {parse_spec("fp16")}, options);
  };
  constexpr int64_t kHuge = INT64_MAX;
  EXPECT_THROW(run({.prompt_sizes = {4096}}), std::invalid_argument);
  EXPECT_THROW(run({.prompt_sizes = {-1}}), std::invalid_argument);
  EXPECT_THROW(run({.gen_sizes = {kHuge}}), std::invalid_argument);
  EXPECT_THROW(run({.combined_sizes = {{kHuge, kHuge}}}), std::invalid_argument);
  EXPECT_THROW(run({.combined_sizes = {{1024, 1025}}}), std::invalid_argument);
  EXPECT_THROW(run({.depths = {-1}}), std::invalid_argument);
  EXPECT_THROW(run({.depths = {kHuge}}), std::invalid_argument);
  EXPECT_THROW(run({.batches = {0}}), std::invalid_argument);
  EXPECT_THROW(run({.batches = {kHuge}}), std::invalid_argument);
  EXPECT_THROW(run({.repetitions = 0}), std::invalid_argument);
  EXPECT_THROW(run({.ubatch = 0}), std::invalid_argument);
  EXPECT_THROW(run({.prompt_sizes = {0}, .gen_sizes = {}}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
