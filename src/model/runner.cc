#include "model/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kvquant/error.h"
#include "model/device_transformer.h"

namespace kvquant {
namespace {

// What both have under the same names.
template <class AnyTransformer, class Cache>
class RunnerOf : public Runner {
 public:
  template <class... Args>
  explicit RunnerOf(AnyTransformer& transformer, Args&&... args)
      : transformer_(transformer), cache_(std::forward<Args>(args)...) {}

  SequenceId add_sequence() override { return cache_.add_sequence(); }
  SequenceId fork(SequenceId id) override { return cache_.fork(id); }
  void drop(SequenceId id) override { cache_.drop(id); }
  void truncate(SequenceId id, int64_t length) override { cache_.truncate(id, length); }
  bool can_truncate(SequenceId id, int64_t length) const override {
    return cache_.can_truncate(id, length);
  }
  int64_t num_compressed_tokens(SequenceId id) const override {
    return cache_.num_compressed_tokens(id);
  }
  using Runner::logits;
  void logits(TensorView<const float, 2> hidden, TensorView<float, 2> out) override {
    transformer_.logits(hidden, out);
  }
  int32_t sample(int64_t row, int64_t num_tokens, Sampler& sampler,
                 std::span<const int32_t> history) override {
    const int64_t vocab = transformer_.config().vocab_size;
    logits_.reserve_discarding(vocab);
    logits(row, row_major(logits_.data(), {1, vocab}));
    return sampler.sample(logits_.span().first(static_cast<size_t>(num_tokens)), history);
  }

 protected:
  void read(SequenceId id, std::span<const int32_t> tokens, int64_t chunk_tokens,
            const std::function<void()>& between) {
    for (int64_t begin = 0; begin < std::ssize(tokens); begin += chunk_tokens) {
      if (between) between();
      const int64_t size = std::min(chunk_tokens, std::ssize(tokens) - begin);
      const ForwardChunk chunk{
          id, tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
      forward({&chunk, 1});
    }
  }

  AnyTransformer& transformer_;
  Cache cache_;
  Buffer<float> logits_;  // of a sampled row
};

class CpuRunner final : public RunnerOf<Transformer, KvCache> {
 public:
  CpuRunner(Model& model, const RunnerOptions& options)
      : RunnerOf(model.transformer(), model.transformer().kv_shape(), options.spec, options.mode,
                 model.transformer().rope_table(), model.pool(), model.calibration()) {}

  void forward(std::span<const ForwardChunk> chunks) override {
    hidden_ = transformer_.forward(chunks, cache_);
  }
  void hidden(int64_t first_row, TensorView<float, 2> out) override {
    const auto rows = rows_of(first_row, out.shape[0]);
    check_arg(out.shape[1] == rows.shape[1] && out.stride[0] == rows.shape[1],
              "hidden: rows have another width, or gaps");
    std::copy_n(rows.data, rows.shape[0] * rows.shape[1], out.data);
  }
  void logits(int64_t first_row, TensorView<float, 2> out) override {
    transformer_.logits(rows_of(first_row, out.shape[0]), out);
  }
  using RunnerOf::logits;
  void fill(std::span<SequenceId> ids, std::span<const int32_t> tokens, int64_t chunk_tokens,
            const std::function<void()>& between) override {
    const auto others = ids.subspan(1);
    const Observation observation(transformer_, [&](const ObservedChunk& chunk) {
      for (const auto id : others) cache_.append(chunk.layer, id, chunk.keys, chunk.values);
    });
    read(ids[0], tokens, chunk_tokens, [&] {
      for (const auto id : others) cache_.settle(id);
      if (between) between();
    });
    for (const auto id : others) cache_.settle(id);
  }
  int64_t memory_bytes() const override { return cache_.memory_bytes(); }
  int64_t memory_bytes(std::span<const SequenceId> ids) const override {
    return cache_.memory_bytes(ids);
  }
  int64_t peak_bytes() const override { return cache_.peak_bytes(); }
  void reset_peak() override { cache_.reset_peak(); }
  KvCache* kv_cache() override { return &cache_; }

 private:
  TensorView<const float, 2> rows_of(int64_t first, int64_t count) const {
    check_arg(0 <= first && 0 < count && first + count <= hidden_.shape[0],
              fmt::format("there are no hidden states of rows {} to {} of {}", first,
                          first + count - 1, hidden_.shape[0]));
    return row_major<const float, 2>(hidden_.data + first * hidden_.stride[0],
                                     {count, hidden_.shape[1]});
  }

  TensorView<const float, 2> hidden_{};  // the transformer's
};

DeviceCacheOptions device_options(const Model& model, const RunnerOptions& options) {
  return {.mode = options.mode,
          .num_sequences = options.num_sequences,
          .max_tokens = options.max_tokens,
          .chunk_tokens = options.chunk_tokens,
          .num_forks = options.num_forks,
          .fork_tokens = options.fork_tokens,
          .calibration = model.calibration()};
}

class DeviceRunner final : public RunnerOf<DeviceTransformer, DeviceCache> {
 public:
  DeviceRunner(Model& model, const RunnerOptions& options)
      : RunnerOf(model.device_transformer(), model.device_transformer().kv_shape(), options.spec,
                 model.device_transformer().rope_table(), model.device_transformer().split(),
                 model.pool(), device_options(model, options)) {}

  void forward(std::span<const ForwardChunk> chunks) override {
    transformer_.forward(chunks, cache_);
  }
  void hidden(int64_t first_row, TensorView<float, 2> out) override {
    transformer_.hidden(first_row, out);
  }
  void logits(int64_t first_row, TensorView<float, 2> out) override {
    transformer_.logits(first_row, out);
  }
  using RunnerOf::logits;
  int32_t sample(int64_t row, int64_t num_tokens, Sampler& sampler,
                 std::span<const int32_t> history) override {
    const int64_t count = sampler.num_candidates();
    if (count == 0 || count > DeviceTransformer::kMostLikely) {
      return RunnerOf::sample(row, num_tokens, sampler, history);
    }
    const auto named = sampler.penalised(history, num_tokens);
    return sampler.pick(
        transformer_.most_likely(row, {num_tokens, count, named, sampler.repeat_penalty()}));
  }
  void fill(std::span<SequenceId> ids, std::span<const int32_t> tokens, int64_t chunk_tokens,
            const std::function<void()>& between) override {
    if (tokens.empty()) return;
    read(ids[0], tokens, chunk_tokens, between);
    for (auto& id : ids.subspan(1)) {
      drop(id);
      id = cache_.copy(ids[0]);
    }
  }
  int64_t memory_bytes() const override { return cache_.held_bytes(); }
  int64_t memory_bytes(std::span<const SequenceId> ids) const override {
    return cache_.held_bytes(ids);
  }
  int64_t peak_bytes() const override { return cache_.memory_bytes(); }
  void reset_peak() override {}
};

}  // namespace

std::unique_ptr<Runner> make_runner(Model& model, const RunnerOptions& options) {
  if (!model.is_on_device()) return std::make_unique<CpuRunner>(model, options);
  try {
    return std::make_unique<DeviceRunner>(model, options);
  } catch (const OutOfMemory& error) {
    const int64_t most = options.max_tokens == 0 ? model.config().max_context : options.max_tokens;
    throw OutOfMemory(
        fmt::format("{}: memory is set aside for {} sequences of up to {} tokens{}; a smaller "
                    "context needs less",
                    error.what(), options.num_sequences, most,
                    options.num_forks == 0 ? "" : fmt::format(" and {} forks", options.num_forks)));
  }
}

}  // namespace kvquant
