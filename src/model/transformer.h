// The forward pass of a Llama-style decoder (arXiv 2302.13971): a ragged batch of token chunks
// through all layers, reading and extending a KvCache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/threads.h"
#include "cache/kv_cache.h"
#include "formats/precision.h"
#include "model/checkpoint.h"
#include "model/weights.h"
#include "ops/rope.h"

namespace kvquant {

// The next tokens of one sequence.
struct ForwardChunk {
  KvCache::SequenceId sequence = 0;
  std::span<const int32_t> tokens;
};

class Transformer {
 public:
  // `checkpoint` and `pool` must outlive this.
  Transformer(const Checkpoint& checkpoint, Precision precision, ThreadPool& pool);

  const ModelConfig& config() const { return config_; }
  const RopeTable& rope_table() const { return rope_; }
  KvShape kv_shape() const;
  int64_t weight_bytes() const { return weights_.num_bytes(); }
  Precision precision() const { return precision_; }
  ThreadPool& pool() const { return pool_; }

  // Runs the chunks through all layers and appends them to the cache. Returns the hidden states
  // after the last norm, [sum of chunk lengths, hidden], chunk after chunk, valid until the next
  // call. Requires a chunk at least, each of one token at least and of a sequence of its own;
  // throws std::invalid_argument otherwise, on unknown tokens, or when a sequence would pass the
  // context: nothing is changed then. Throws FormatError when activations are not finite; the
  // chunks' sequences can only be dropped after that.
  TensorView<const float, 2> forward(std::span<const ForwardChunk> chunks, KvCache& cache);

  // Logits of some hidden states: hidden [num_rows, hidden] -> out [num_rows, vocab_size].
  void logits(TensorView<const float, 2> hidden, TensorView<float, 2> out);

  int64_t scratch_bytes() const;

 private:
  void check_chunks(std::span<const ForwardChunk> chunks, const KvCache& cache) const;
  void embed(std::span<const ForwardChunk> chunks);
  void attention_block(int64_t layer, std::span<const ForwardChunk> chunks, KvCache& cache);
  void mlp_block(int64_t layer, int64_t num_tokens);
  void reserve(int64_t num_tokens);
  LinearContext linear_context() { return {precision_, linear_scratch_, pool_}; }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  Precision precision_;
  ThreadPool& pool_;
  RopeTable rope_;
  ModelWeights weights_;

  // Scratch of one call, [tokens of the batch, ...].
  Buffer<float> residual_;   // [n, hidden]
  Buffer<float> normed_;     // [n, hidden]
  Buffer<float> qkv_;        // [n, (num_q_heads + 2 num_kv_heads) * head_dim]
  Buffer<float> attention_;  // the same strides as qkv_, only the query part is used
  Buffer<float> mlp_;        // [n, ffn]
  LinearScratch linear_scratch_;
};

}  // namespace kvquant
