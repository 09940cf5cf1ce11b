// A cache whose sequences were filled to a depth once: every repetition of a test goes on from
// there, in forks of them, and leaves nothing behind.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "kvquant/spec.h"
#include "model/model.h"
#include "model/runner.h"

namespace kvquant {

class FilledCache {
 public:
  // `batch` >= 1 empty sequences over the model's calibration, which will have up to max_tokens
  // each (0: the model's context). `model` must outlive this. Throws what make_runner does.
  FilledCache(Model& model, const CacheSpec& spec, int64_t ubatch, int64_t batch,
              int64_t max_tokens = 0);

  // Appends the tokens to every sequence. The model reads them once, the other sequences get copies
  // of what was stored in memory of their own: shared blocks would lie in the
  // processor's caches. Nothing may be running. `between` is called before every chunk of ubatch.
  void fill(std::span<const int32_t> tokens, const std::function<void()>& between = {});

  // Starts a repetition: forks all sequences and forgets the peak of the cache. Blocks that are
  // partly filled are copied when they are first written.
  void start();
  // Both need a repetition that has started. Prefill: the same tokens to each sequence, as many at
  // once as ubatch allows, and the logits after the last one of each. Decode: a step per token, all
  // sequences in one batch.
  void prefill(std::span<const int32_t> tokens);
  void decode(std::span<const int32_t> tokens);
  void finish();  // drops the forks

  // Of the forks alone, as if they shared nothing with what was filled.
  int64_t cache_bytes() const { return runner_->memory_bytes(running_); }
  int64_t peak_cache_bytes() const;  // the most since start, scratch included
  int64_t all_bytes() const { return runner_->memory_bytes(); }
  // After the last token of each sequence, [batch][vocab_size].
  std::span<const float> logits() const { return logits_.span(); }

 private:
  void keep_logits(int64_t row, int64_t sequence, int64_t count);

  Model& model_;
  int64_t ubatch_;
  std::unique_ptr<Runner> runner_;
  std::vector<Runner::SequenceId> filled_, running_;
  Buffer<float> logits_;
};

}  // namespace kvquant
