// Runner: a model with a cache of it, wherever the two are: a Transformer and a KvCache on the CPU,
// a DeviceTransformer and a DeviceCache on a GPU. What runs models for users goes through it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "cache/kv_cache.h"
#include "model/model.h"
#include "model/sampler.h"

namespace kvquant {

struct RunnerOptions {
  CacheSpec spec;
  CacheMode mode = CacheMode::kAsServed;
  // Limits for which devices set memory aside when the runner is made; the CPU knows none.
  int64_t num_sequences = 1;
  int64_t max_tokens = 0;      // of a sequence; 0: the model's context
  int64_t chunk_tokens = 512;  // of one forward, all sequences together
  int64_t num_forks = 0;       // beside the sequences
  int64_t fork_tokens = 0;     // that a fork appends
};

// Functions are those of Transformer and KvCache and throw what they do.
class Runner {
 public:
  using SequenceId = KvCache::SequenceId;

  virtual ~Runner() = default;

  virtual SequenceId add_sequence() = 0;
  virtual SequenceId fork(SequenceId id) = 0;
  virtual void drop(SequenceId id) = 0;
  virtual void truncate(SequenceId id, int64_t length) = 0;
  virtual bool can_truncate(SequenceId id, int64_t length) const = 0;
  virtual int64_t num_compressed_tokens(SequenceId id) const = 0;

  // Hidden states after the last norm, a row for each token, stay where the model is until the next
  // call.
  virtual void forward(std::span<const ForwardChunk> chunks) = 0;
  // Of rows [first_row, first_row + out.shape[0]) of the last forward: themselves, [rows, hidden],
  // and their logits, [rows, vocab_size]. `out` is on the host.
  virtual void hidden(int64_t first_row, TensorView<float, 2> out) = 0;
  virtual void logits(int64_t first_row, TensorView<float, 2> out) = 0;
  // The token that `sampler` draws among the first num_tokens behind row `row`, `history` being all
  // before it. On a device logits stay there if the sampler looks at few (Sampler::num_candidates).
  virtual int32_t sample(int64_t row, int64_t num_tokens, Sampler& sampler,
                         std::span<const int32_t> history) = 0;
  // Of hidden states on the host.
  virtual void logits(TensorView<const float, 2> hidden, TensorView<float, 2> out) = 0;
  // Appends the tokens to sequences that hold the same ones, in chunks; `between`, if there is one,
  // is called before each. The model reads them once, yet every sequence has memory of its own. On
  // a device all but the first get other ids.
  virtual void fill(std::span<SequenceId> ids, std::span<const int32_t> tokens,
                    int64_t chunk_tokens, const std::function<void()>& between) = 0;

  // Of sequences, as KvCache counts; pieces of a device's memory are multiples of 256 bytes.
  virtual int64_t memory_bytes() const = 0;
  virtual int64_t memory_bytes(std::span<const SequenceId> ids) const = 0;
  // The most of it and its scratch since reset_peak(). On a device all that the cache has
  // allocated, which is there from the beginning.
  virtual int64_t peak_bytes() const = 0;
  virtual void reset_peak() = 0;

  // The cache on the CPU, for what only it can do (files, splices); null: it is on a device.
  virtual KvCache* kv_cache() { return nullptr; }
};

// `model` must outlive it. Throws what KvCache and DeviceCache throw: std::invalid_argument for a
// spec that doesn't fit the model or isn't built for its device, OutOfMemory.
std::unique_ptr<Runner> make_runner(Model& model, const RunnerOptions& options);

}  // namespace kvquant
