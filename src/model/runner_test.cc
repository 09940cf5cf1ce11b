#include "model/runner.h"

#include <gtest/gtest.h>

#include <string>

#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

std::vector<float> logits_behind(Runner& runner, Runner::SequenceId id,
                                 std::span<const int32_t> tokens, const Model& model) {
  const ForwardChunk chunk{id, tokens};
  runner.forward({&chunk, 1});
  std::vector<float> out(static_cast<size_t>(model.config().vocab_size));
  runner.logits(std::ssize(tokens) - 1, row_major(out.data(), {1, std::ssize(out)}));
  std::vector<float> hidden(static_cast<size_t>(model.config().hidden)), same(out.size());
  const auto row = row_major(hidden.data(), {1, std::ssize(hidden)});
  runner.hidden(std::ssize(tokens) - 1, row);
  runner.logits(row_major<const float, 2>(hidden.data(), {1, std::ssize(hidden)}),
                row_major(same.data(), {1, std::ssize(same)}));
  EXPECT_EQ(out, same);
  EXPECT_THROW(runner.hidden(std::ssize(tokens), row), std::invalid_argument);
  return out;
}

TEST(Runners, FillSequencesAlikeEachInMemoryOfItsOwn) {
  Model model = Model::load(kEmbedded, {.num_threads = 2, .precision = Precision::kF32});
  std::vector<int32_t> tokens(200);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(7 * i % 900);
  const std::span<const int32_t> all = tokens;
  for (const char* spec : {"fp16", "nuq3-1%", "k=nuq4,v=fp16"}) {
    SCOPED_TRACE(spec);
    const auto runner = make_runner(model, {.spec = parse_spec(spec)});
    const int64_t empty = runner->memory_bytes();
    std::vector<Runner::SequenceId> ids{runner->add_sequence(), runner->add_sequence()};
    int num_chunks = 0;
    runner->fill(ids, all.first(150), 64, [&] { ++num_chunks; });
    EXPECT_EQ(num_chunks, 3);
    EXPECT_EQ(runner->memory_bytes(ids) - empty,
              2 * (runner->memory_bytes(std::span(ids).first(1)) - empty));
    const auto fork = runner->fork(ids[0]);
    const auto expected = logits_behind(*runner, ids[0], all.subspan(150), model);
    EXPECT_EQ(logits_behind(*runner, fork, all.subspan(150), model), expected);
    const auto other = logits_behind(*runner, ids[1], all.subspan(150), model);
    for (size_t i = 0; i < other.size(); ++i) ASSERT_NEAR(other[i], expected[i], 2e-3);
    EXPECT_NE(runner->kv_cache(), nullptr);
  }
}

TEST(Runners, ModelsOnDevicesHaveNoWeightsOfTheCpus) {
  const ModelOptions int8{
      .precision = Precision::kF32, .weights = WeightStorage::kInt8, .devices = {0}};
  EXPECT_THROW(Model::load(kEmbedded, int8), std::invalid_argument);
  EXPECT_THROW(Model::load(kEmbedded, {.precision = Precision::kF32, .devices = {99}}),
               DeviceError);
}

}  // namespace
}  // namespace kvquant
