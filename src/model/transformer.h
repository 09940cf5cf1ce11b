// The forward pass of a Llama-style decoder (arXiv 2302.13971), Mistral's and Qwen's among them: a
// ragged batch of token chunks through all layers, reading and extending a KvCache.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/threads.h"
#include "cache/kv_cache.h"
#include "formats/precision.h"
#include "model/absorbed_outputs.h"
#include "model/checkpoint.h"
#include "model/weights.h"
#include "ops/attend.h"
#include "ops/rope.h"

namespace kvquant {

// What attention multiplies the model's scores with.
float score_scale(const ModelConfig& config);

// The next tokens of one sequence.
struct ForwardChunk {
  KvCache::SequenceId sequence = 0;
  std::span<const int32_t> tokens;
};

// What the attention of one layer is about to see of one chunk. Views of scratch, valid during the
// call.
struct ObservedChunk {
  int64_t layer = 0;
  KvCache::SequenceId sequence = 0;
  int64_t first_position = 0;  // of the chunk in its sequence
  // [n, num_q_heads, head_dim], before RoPE, with biases and norms where the model has them
  TensorView<const float, 3> queries;
  TensorView<const float, 3> rotated_queries;  // after it
  TensorView<const float, 3> keys;             // [n, num_kv_heads, head_dim], before RoPE
  TensorView<const float, 3> values;           // [n, num_kv_heads, head_dim]
};
// Called from the thread that runs the model, layer by layer, chunk by chunk. What it throws passes
// through forward, as an error amid the layers.
using LayerObserver = std::function<void(const ObservedChunk& chunk)>;

// Computes the attention of one layer for one sequence: what attend() does with these jobs, one per
// KV head. Called as an observer is.
using LayerAttention =
    std::function<void(int64_t layer, KvCache::SequenceId sequence, const AttendShape& shape,
                       std::span<const AttendJob> jobs)>;

class Transformer {
 public:
  // `checkpoint` and `pool` must outlive this.
  Transformer(const Checkpoint& checkpoint, Precision precision, ThreadPool& pool,
              WeightStorage storage = WeightStorage::kAuto);

  const ModelConfig& config() const { return config_; }
  const RopeTable& rope_table() const { return rope_; }
  KvShape kv_shape() const;
  int64_t weight_bytes() const { return weights_.num_bytes(); }
  // Of output projections that take latents, beside the weights. They are made when a cache first
  // needs them.
  int64_t absorbed_bytes() const { return absorbed_.num_bytes(); }
  Precision precision() const { return precision_; }
  ThreadPool& pool() const { return pool_; }

  // Runs the chunks through all layers and appends them to the cache. Returns the hidden states
  // after the last norm, [sum of chunk lengths, hidden], chunk after chunk, valid until the next
  // call. Requires a chunk at least, each of one token at least and of a sequence of its own;
  // throws std::invalid_argument otherwise, on unknown tokens, or when a sequence would pass the
  // context: nothing is changed then. Throws FormatError when activations are not finite; the
  // chunks' sequences can only be dropped after that.
  TensorView<const float, 2> forward(std::span<const ForwardChunk> chunks, KvCache& cache);

  // One layer alone, for calibration: what forward does to residual [tokens of the chunk, hidden]
  // there. Keys and values go to layer `cache_layer` of the cache, which may have fewer layers than
  // the model. Requires a chunk that forward would take; its errors.
  void run_layer(int64_t layer, const ForwardChunk& chunk, KvCache& cache, int64_t cache_layer,
                 TensorView<float, 2> residual);
  // What forward starts from: token embeddings into out [tokens, hidden].
  void embed(std::span<const int32_t> tokens, TensorView<float, 2> out) const;

  // What forward ends with: the last norm of residuals [tokens, hidden] into out of that shape.
  // Both gapless. Throws FormatError when the result is not finite.
  void final_norm(TensorView<const float, 2> residual, TensorView<float, 2> out) const;

  // Shows every chunk of every layer to `observer` until it is set again; empty: to nobody.
  void set_observer(LayerObserver observer) { observer_ = std::move(observer); }
  bool is_observed() const { return static_cast<bool>(observer_); }

  // From now on. Results differ by rounding only.
  void set_value_decoders(ValueDecoders decoders) { value_decoders_ = decoders; }

  // Instead of attend() until it is set again; empty: attend(). For comparisons.
  void set_attention(LayerAttention attention) { attention_function_ = std::move(attention); }

  // Logits of some hidden states: hidden [num_rows, hidden] -> out [num_rows, vocab_size].
  void logits(TensorView<const float, 2> hidden, TensorView<float, 2> out);

  int64_t scratch_bytes() const;

 private:
  // A layer of the model and the one of the cache that holds its keys and values.
  struct LayerIndex {
    int64_t model, cache;
  };
  void attention_block(LayerIndex layer, std::span<const ForwardChunk> chunks, KvCache& cache,
                       TensorView<float, 2> residual);
  void norm_rows(TensorView<const float, 2> x, std::span<const float> weight,
                 TensorView<float, 2> out) const;
  void finish_qkv(const LayerWeights& weights, int64_t num_rows);
  // latent_width: of a query head's sums of latents that attention hands out; 0: none.
  void attend_chunk(LayerIndex layer, const ForwardChunk& chunk, int64_t row, KvCache& cache,
                    int64_t latent_width);
  void mlp_block(int64_t layer, TensorView<float, 2> residual);
  void reserve(int64_t num_tokens);
  LinearContext linear_context() { return {precision_, linear_scratch_, pool_}; }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  Precision precision_;
  ThreadPool& pool_;
  RopeTable rope_;
  ModelWeights weights_;
  ValueDecoders value_decoders_ = ValueDecoders::kExpanded;
  AbsorbedOutputs absorbed_;

  // Scratch of one call, [tokens of the batch, ...].
  Buffer<float> residual_;   // [n, hidden]
  Buffer<float> normed_;     // [n, hidden]
  Buffer<float> wide_;       // [n, (num_q_heads + 2 num_kv_heads) * head_dim], then [n, ffn]
  Buffer<float> attention_;  // the same strides as queries, keys and values in wide_
  Buffer<float> latents_;    // [n, num_q_heads * width], absorbed layers only
  Buffer<float> observed_;   // [n, num_q_heads * head_dim], queries before RoPE of a chunk
  LinearScratch linear_scratch_;
  LayerObserver observer_;
  LayerAttention attention_function_;
};

// Shows what a transformer computes to an observer as long as it lives.
class Observation {
 public:
  Observation(Transformer& transformer, LayerObserver observer) : transformer_(transformer) {
    transformer_.set_observer(std::move(observer));
  }
  ~Observation() { transformer_.set_observer({}); }
  Observation(const Observation&) = delete;
  Observation& operator=(const Observation&) = delete;

 private:
  Transformer& transformer_;
};

}  // namespace kvquant
