#include "bench/model_bench.h"

#include <gtest/gtest.h>

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
  const ModelBenchOptions options{.prompt_sizes = {16},
                                  .gen_sizes = {2},
                                  .depths = {0, 70},
                                  .batches = {1, 2},
                                  .repetitions = 2};
  const auto rows = bench_model(model, {parse_spec("fp16"), parse_spec("nuq4")}, options);
  ASSERT_EQ(rows.size(), 2u * 2 * 2 * 2);
  for (const ModelBenchRow& row : rows) {
    EXPECT_EQ(row.samples_s.size(), 2u);
    EXPECT_GT(row.tokens_per_s_mean, 0);
    EXPECT_EQ(row.n_prompt + row.n_gen, row.n_prompt > 0 ? 16 : 2);
  }
  EXPECT_EQ(rows[8].batch, 2);
  EXPECT_EQ(rows[8].cache_bytes, 2 * rows[0].cache_bytes);  // fp16: two sequences, twice the blocks
}

TEST(ModelBench, WhatDoesNotFitIsRefused) {
  Model model = Model::load(kEmbedded);
  const auto run = [&](const ModelBenchOptions& options) {
    bench_model(model, {parse_spec("fp16")}, options);
  };
  EXPECT_THROW(run({.prompt_sizes = {4096}}), std::invalid_argument);
  EXPECT_THROW(run({.batches = {0}}), std::invalid_argument);
  EXPECT_THROW(run({.repetitions = 0}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
