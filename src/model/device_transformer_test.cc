// A model on a device, every kernel of it, against the model on the CPU. Emulated by the CPU and,
// where there is one, on a GPU.
#include "model/device_transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "kvquant/error.h"
#include "model/model.h"
#include "ops/cuda_device_test.h"
#include "ops/cuda_step.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

// The embedded model on the CPU and on a device, and a cache of each.
class DeviceModels : public testing::OnEachDevice {
 protected:
  void SetUp() override {
    const std::string missing = testing::missing_products(device());
    if (!missing.empty()) GTEST_SKIP() << missing;
  }

  void load(const std::string& spec, CacheMode mode, Precision precision = Precision::kF32) {
    cache_.reset();
    host_cache_.reset();
    transformer_.reset();
    model_.emplace(Model::load(kEmbedded, {.num_threads = 2, .precision = precision}));
    transformer_ =
        std::make_unique<DeviceTransformer>(model_->checkpoint(), precision, one(device()), pool_);
    cache_ = std::make_unique<DeviceCache>(
        transformer_->kv_shape(), parse_spec(spec), transformer_->rope_table(), device(), pool_,
        DeviceCacheOptions{.mode = mode, .num_sequences = 2, .max_tokens = 300});
    Transformer& host = model_->transformer();
    host_cache_ = std::make_unique<KvCache>(host.kv_shape(), parse_spec(spec), mode,
                                            host.rope_table(), model_->pool());
    id_ = cache_->add_sequence();
    host_id_ = host_cache_->add_sequence();
  }

  static std::vector<CudaDevice*> one(CudaDevice& device) { return {&device}; }

  std::vector<int32_t> tokens(size_t count) {
    const std::string text = "The old man went down to the harbour, and saw the grey sea. ";
    std::string all;
    while (all.size() < 8 * count) all += text;
    auto out = model_->tokenizer().encode(all);
    out.resize(count);
    return out;
  }

  // Logits behind the tokens, on the CPU.
  std::vector<float> host_logits(std::span<const int32_t> tokens) {
    Transformer& host = model_->transformer();
    const ForwardChunk chunk{host_id_, tokens};
    const auto hidden = host.forward({&chunk, 1}, *host_cache_);
    std::vector<float> out(static_cast<size_t>(model_->config().vocab_size));
    host.logits(row_major<const float, 2>(&hidden(hidden.shape[0] - 1, 0), {1, hidden.shape[1]}),
                row_major(out.data(), {1, std::ssize(out)}));
    return out;
  }
  std::vector<float> device_logits(std::span<const int32_t> tokens) {
    const ForwardChunk chunk{id_, tokens};
    transformer_->forward({&chunk, 1}, *cache_);
    return logits_of(std::ssize(tokens) - 1);
  }
  std::vector<float> logits_of(int64_t row) {
    std::vector<float> out(static_cast<size_t>(model_->config().vocab_size));
    transformer_->logits(row, row_major(out.data(), {1, std::ssize(out)}));
    return out;
  }

  std::optional<Model> model_;
  std::unique_ptr<DeviceTransformer> transformer_;
  std::unique_ptr<DeviceCache> cache_;
  std::unique_ptr<KvCache> host_cache_;
  DeviceCache::SequenceId id_ = 0;
  KvCache::SequenceId host_id_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceModels, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

TEST_P(DeviceModels, PredictWhatTheCpuPredictsAndGoOnWithTheSameWords) {
  for (const char* spec : {"fp16", "nuq4", "nuq3-1%", "int8"}) {
    for (const CacheMode mode : {CacheMode::kAsServed, CacheMode::kStrict}) {
      SCOPED_TRACE(std::string(spec) + (mode == CacheMode::kStrict ? ", strict" : ", as served"));
      load(spec, mode);
      auto next = tokens(150);
      for (int step = 0; step < 4; ++step) {
        const auto expected = host_logits(next);
        const auto found = device_logits(next);
        const double kl = kl_divergence(expected, log_sum_exp(expected), found, log_sum_exp(found));
        EXPECT_LT(kl, 1e-4) << "step " << step;
        const int32_t best = argmax(expected);
        EXPECT_EQ(argmax(found), best) << "step " << step;
        const auto likely =
            transformer_->most_likely(std::ssize(next) - 1, {std::ssize(found), 3, {}, 1});
        EXPECT_EQ(likely[0].id, argmax(found));
        EXPECT_EQ(likely[1].logit, found[static_cast<size_t>(likely[1].id)]);
        next = {best};
      }
      EXPECT_EQ(cache_->num_compressed_tokens(id_), host_cache_->num_compressed_tokens(host_id_));
    }
  }
}

TEST_P(DeviceModels, RoundToBf16AsTheCpuDoesNearEnough) {
  load("nuq3-1%", CacheMode::kAsServed, Precision::kBF16);
  const auto prompt = tokens(100);
  const auto expected = host_logits(prompt);
  const auto found = device_logits(prompt);
  EXPECT_LT(kl_divergence(expected, log_sum_exp(expected), found, log_sum_exp(found)), 1e-2);
}

TEST_P(DeviceModels, SequencesOfABatchAreThoseAlone) {
  load("nuq4", CacheMode::kAsServed);
  const auto prompt = tokens(90);
  const auto other = cache_->add_sequence();
  const std::span<const int32_t> all = prompt;
  const ForwardChunk both[] = {{other, all.first(20)}, {id_, all}};
  transformer_->forward(both, *cache_);
  const auto found = logits_of(109);
  const auto expected = host_logits(prompt);
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(found[i], expected[i], 5e-3);
}

// 90 steps of two sequences of different lengths: tiles are encoded, blocks and pages taken,
// tables grow.
TEST_P(DeviceModels, StepsAreTheSameWhetherTheyAreGatheredOrNot) {
  for (const char* spec : {"fp16,block=64", "nuq3-1%,block=64", "k=bf16,v=nuq4"}) {
    SCOPED_TRACE(spec);
    load(spec, CacheMode::kAsServed);
    const auto gathered = gather_steps(open());
    DeviceTransformer transformer(model_->checkpoint(), Precision::kF32, one(*gathered), pool_);
    DeviceCache cache(transformer.kv_shape(), parse_spec(spec), transformer.rope_table(), *gathered,
                      pool_, {.num_sequences = 2, .max_tokens = 300});
    const auto prompt = tokens(100);
    const std::span<const int32_t> all = prompt;
    const int64_t ids[] = {cache.add_sequence(), cache.add_sequence()};
    const int64_t other = cache_->add_sequence();
    const ForwardChunk one[] = {{id_, all}, {other, all.first(40)}};
    const ForwardChunk two[] = {{ids[0], all}, {ids[1], all.first(40)}};
    transformer_->forward(one, *cache_);
    transformer.forward(two, cache);
    for (size_t step = 0; step < 90; ++step) {
      const ForwardChunk plain[] = {{id_, all.subspan(step % 90, 1)},
                                    {other, all.subspan(step % 80, 1)}};
      const ForwardChunk as_graph[] = {{ids[0], plain[0].tokens}, {ids[1], plain[1].tokens}};
      transformer_->forward(plain, *cache_);
      transformer.forward(as_graph, cache);
      const int64_t width = model_->config().hidden;
      std::vector<float> expected(static_cast<size_t>(2 * width)), found(expected.size());
      transformer_->hidden(0, row_major(expected.data(), {2, width}));
      transformer.hidden(0, row_major(found.data(), {2, width}));
      ASSERT_EQ(found, expected) << "step " << step;
    }
    EXPECT_GT(gathered->num_replays(), 60);
  }
}

TEST_P(DeviceModels, LayersOnSeveralDevicesAreThoseOfOne) {
  for (const char* spec : {"fp16,block=64", "nuq3-1%,block=64,layers=0:fp16"}) {
    SCOPED_TRACE(spec);
    load(spec, CacheMode::kAsServed);
    std::vector<std::unique_ptr<CudaDevice>> owned;
    std::vector<CudaDevice*> devices;
    for (int i = 0; i < 3; ++i) devices.push_back(owned.emplace_back(gather_steps(open())).get());
    DeviceTransformer transformer(model_->checkpoint(), Precision::kF32, devices, pool_);
    EXPECT_EQ(transformer.weight_bytes(), transformer_->weight_bytes());
    const int64_t before = devices[1]->allocated_bytes();
    DeviceCache cache(transformer.kv_shape(), parse_spec(spec), transformer.rope_table(),
                      transformer.split(), pool_, {.num_sequences = 2, .max_tokens = 300});
    EXPECT_GT(devices[1]->allocated_bytes(), before);
    const auto prompt = tokens(200);
    const std::span<const int32_t> all = prompt;
    int64_t mine = cache.add_sequence(), other = id_;
    const auto run = [&](std::span<const int32_t> chunk_tokens) {
      const ForwardChunk spread{mine, chunk_tokens}, alone{other, chunk_tokens};
      transformer.forward({&spread, 1}, cache);
      transformer_->forward({&alone, 1}, *cache_);
      const int64_t vocab = model_->config().vocab_size;
      std::vector<float> found(static_cast<size_t>(vocab)), expected(found.size());
      transformer.logits(std::ssize(chunk_tokens) - 1, row_major(found.data(), {1, vocab}));
      transformer_->logits(std::ssize(chunk_tokens) - 1, row_major(expected.data(), {1, vocab}));
      ASSERT_EQ(found, expected);
      EXPECT_EQ(transformer.most_likely(std::ssize(chunk_tokens) - 1, {vocab, 1, {}, 1})[0].id,
                argmax(expected));
      EXPECT_EQ(cache.held_bytes(), cache_->held_bytes());
    };
    run(all.first(130));
    mine = cache.fork(mine);
    other = cache_->fork(other);
    for (size_t i = 130; i < 160; ++i) run(all.subspan(i, 1));
    if (cache.can_truncate(mine, 155)) {
      cache.truncate(mine, 155);
      cache_->truncate(other, 155);
    }
    run(all.subspan(160, 40));
    for (const CudaDevice* device : devices) EXPECT_GT(device->num_replays(), 10);
    if (HasFatalFailure()) return;
  }
}

TEST_P(DeviceModels, MoreDevicesThanLayersAreRefused) {
  load("fp16", CacheMode::kAsServed);
  const auto layers = static_cast<size_t>(model_->config().num_layers);
  const std::vector<CudaDevice*> many(layers + 1, &device());
  EXPECT_THROW(DeviceTransformer(model_->checkpoint(), Precision::kF32, many, pool_),
               std::invalid_argument);
}

TEST_P(DeviceModels, RefuseBadBatches) {
  load("fp16", CacheMode::kAsServed);
  const std::vector<int32_t> fine{1}, unknown{-1};
  const ForwardChunk twice[] = {{id_, fine}, {id_, fine}};
  const ForwardChunk bad[] = {{id_, unknown}};
  EXPECT_THROW(transformer_->forward({}, *cache_), std::invalid_argument);
  EXPECT_THROW(transformer_->forward(twice, *cache_), std::invalid_argument);
  EXPECT_THROW(transformer_->forward(bad, *cache_), std::invalid_argument);
  EXPECT_EQ(cache_->length(id_), 0);
}

}  // namespace
}  // namespace kvquant
