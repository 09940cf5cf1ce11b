#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/check.h"
#include "kvquant/error.h"
#include "model/check_chunks.h"
#include "ops/attend.h"
#include "ops/norm.h"
#include "ops/rows.h"

namespace kvquant {
namespace {

int64_t total_tokens(std::span<const ForwardChunk> chunks) {
  int64_t total = 0;
  for (const auto& chunk : chunks) total += static_cast<int64_t>(chunk.tokens.size());
  return total;
}

int64_t qkv_width(const ModelConfig& config) {
  return (config.num_q_heads + 2 * config.num_kv_heads) * config.head_dim;
}

// Heads [first, first + count) of rows [row, row + num_rows) of a fused qkv buffer.
template <class T>
TensorView<T, 3> heads_of(T* qkv, const ModelConfig& config, int64_t row, int64_t num_rows,
                          int64_t first, int64_t count) {
  const int64_t width = qkv_width(config);
  return {.data = qkv + row * width + first * config.head_dim,
          .shape = {num_rows, count, config.head_dim},
          .stride = {width, config.head_dim, 1}};
}

template <int Rank>
TensorView<const float, Rank> as_const(const TensorView<float, Rank>& view) {
  TensorView<const float, Rank> out{.data = view.data};
  std::copy_n(view.shape, Rank, out.shape);
  std::copy_n(view.stride, Rank, out.stride);
  return out;
}

// Rows [first, end) of the outermost dimension.
template <class T, int Rank>
TensorView<T, Rank> rows_of(TensorView<T, Rank> view, int64_t first, int64_t end) {
  view.data += first * view.stride[0];
  view.shape[0] = end - first;
  return view;
}

void copy_rows(TensorView<float, 3> source, Buffer<float>& out) {
  const int64_t size = source.shape[1] * source.shape[2];  // heads of a row lie side by side
  out.reserve_discarding(source.shape[0] * size);
  for (int64_t t = 0; t < source.shape[0]; ++t) {
    std::copy_n(&source(t, 0, 0), size, out.data() + t * size);
  }
}

}  // namespace

// Yarn's factor of queries and keys is one of their products.
float score_scale(const ModelConfig& config) {
  const double factor = config.rope_scaling.attention_factor;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  return static_cast<float>(factor * factor) * scale;
}

Transformer::Transformer(const Checkpoint& checkpoint, Precision precision, ThreadPool& pool,
                         WeightStorage storage)
    : checkpoint_(checkpoint),
      config_(checkpoint.config()),
      precision_(precision),
      pool_(pool),
      rope_(config_.max_context, rope_frequencies(config_.head_dim, config_.rope_theta,
                                                  config_.rope_scaling, config_.max_context)),
      weights_(load_weights(checkpoint, precision, pool, storage)) {}

KvShape Transformer::kv_shape() const {
  return {config_.num_layers, config_.num_kv_heads, config_.head_dim, config_.sliding_window};
}

void Transformer::reserve(int64_t num_tokens) {
  normed_.reserve_discarding(num_tokens * config_.hidden);
  wide_.reserve_discarding(num_tokens * std::max(qkv_width(config_), config_.ffn));
  attention_.reserve_discarding(num_tokens * qkv_width(config_));
}

void Transformer::embed(std::span<const int32_t> tokens, TensorView<float, 2> out) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    checkpoint_.read_row("model.embed_tokens.weight", tokens[i], out.row(static_cast<int64_t>(i)));
  }
}

TensorView<const float, 2> Transformer::forward(std::span<const ForwardChunk> chunks,
                                                KvCache& cache) {
  check_chunks(config_, chunks, cache);
  const int64_t n = total_tokens(chunks);
  reserve(n);
  residual_.reserve_discarding(n * config_.hidden);
  const auto residual = row_major(residual_.data(), {n, config_.hidden});
  int64_t row = 0;
  for (const auto& chunk : chunks) {
    const auto size = static_cast<int64_t>(chunk.tokens.size());
    embed(chunk.tokens, row_major(&residual(row, 0), {size, config_.hidden}));
    row += size;
  }
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    attention_block({layer, layer}, chunks, cache, residual);
    mlp_block(layer, residual);
  }
  for (const auto& chunk : chunks) cache.settle(chunk.sequence);
  final_norm(as_const(residual), row_major(normed_.data(), {n, config_.hidden}));
  return row_major<const float, 2>(normed_.data(), {n, config_.hidden});
}

void Transformer::norm_rows(TensorView<const float, 2> x, std::span<const float> weight,
                            TensorView<float, 2> out) const {
  for_row_ranges(x.shape[0], pool_, [&](int64_t first, int64_t end) {
    rms_norm(rows_of(x, first, end), weight, config_.norm_eps, rows_of(out, first, end));
  });
}

void Transformer::final_norm(TensorView<const float, 2> residual, TensorView<float, 2> out) const {
  norm_rows(residual, weights_.final_norm, out);
  // Infinities of a layer that attention doesn't see end as NaN here.
  const std::span<const float> all(out.data, static_cast<size_t>(out.shape[0] * out.shape[1]));
  if (!are_within(all, std::numeric_limits<float>::max())) {
    throw FormatError("the model's hidden states are not finite after the last layer");
  }
}

void Transformer::run_layer(int64_t layer, const ForwardChunk& chunk, KvCache& cache,
                            int64_t cache_layer, TensorView<float, 2> residual) {
  const auto n = static_cast<int64_t>(chunk.tokens.size());
  check_chunks(config_, std::span(&chunk, 1), cache);
  check_arg(0 <= layer && layer < config_.num_layers,
            "layer " + std::to_string(layer) + " of " + std::to_string(config_.num_layers));
  check_arg(residual.shape[0] == n && residual.shape[1] == config_.hidden &&
                residual.stride[0] == config_.hidden && residual.stride[1] == 1,
            "the residual of a chunk of " + std::to_string(n) + " tokens is [" +
                std::to_string(residual.shape[0]) + ", " + std::to_string(residual.shape[1]) +
                "], not [" + std::to_string(n) + ", " + std::to_string(config_.hidden) + "]");
  reserve(n);
  attention_block({layer, cache_layer}, {&chunk, 1}, cache, residual);
  mlp_block(layer, residual);
  cache.settle(chunk.sequence);
}

void Transformer::attention_block(LayerIndex layer, std::span<const ForwardChunk> chunks,
                                  KvCache& cache, TensorView<float, 2> residual) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer.model)];
  const int64_t n = residual.shape[0];
  const int64_t width = qkv_width(config_);
  const auto normed = row_major(normed_.data(), {n, config_.hidden});
  norm_rows(as_const(residual), weights.attention_norm, normed);
  linear(weights.qkv, as_const(normed), row_major(wide_.data(), {n, width}), Epilogue::kStore,
         linear_context());
  finish_qkv(weights, n);
  const PackedMatrix* absorbed =
      value_decoders_ == ValueDecoders::kExpanded
          ? nullptr
          : absorbed_.find_or_make({layer.model, layer.cache, weights.output, precision_}, cache,
                                   pool_);
  const int64_t num_latents = absorbed == nullptr ? 0 : absorbed->num_in();
  latents_.reserve_discarding(n * num_latents);
  int64_t row = 0;
  for (const auto& chunk : chunks) {
    attend_chunk(layer, chunk, row, cache, num_latents / config_.num_q_heads);
    row += static_cast<int64_t>(chunk.tokens.size());
  }
  const TensorView<const float, 2> attended{.data = attention_.data(),
                                            .shape = {n, config_.num_q_heads * config_.head_dim},
                                            .stride = {width, 1}};
  linear(weights.output, attended, residual, Epilogue::kAdd, linear_context());
  if (absorbed == nullptr) return;
  linear(*absorbed, row_major<const float, 2>(latents_.data(), {n, num_latents}), residual,
         Epilogue::kAdd, linear_context());
}

// Biases, and the norms of queries and keys, of all rows of wide_.
void Transformer::finish_qkv(const LayerWeights& weights, int64_t num_rows) {
  const int64_t width = qkv_width(config_), head_dim = config_.head_dim;
  if (!weights.qkv_bias.empty()) {
    for (int64_t row = 0; row < num_rows; ++row) {
      float* out = wide_.data() + row * width;
      for (int64_t i = 0; i < width; ++i) out[i] += weights.qkv_bias[static_cast<size_t>(i)];
    }
  }
  if (weights.query_norm.empty()) return;
  const auto norm_heads = [&](float* first, int64_t count, std::span<const float> weight) {
    const auto heads = row_major(first, {count, head_dim});
    rms_norm(as_const(heads), weight, config_.norm_eps, heads);
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    float* queries = wide_.data() + row * width;
    norm_heads(queries, config_.num_q_heads, weights.query_norm);
    norm_heads(queries + config_.num_q_heads * head_dim, config_.num_kv_heads, weights.key_norm);
  }
}

// One chunk, whose first token is row `row` of wide_: append, rotate, attend.
void Transformer::attend_chunk(LayerIndex layer, const ForwardChunk& chunk, int64_t row,
                               KvCache& cache, int64_t latent_width) {
  const int64_t width = qkv_width(config_);
  const auto num_new = static_cast<int64_t>(chunk.tokens.size());
  const int64_t first = cache.length(chunk.sequence);  // moves on with the last layer
  const auto keys = heads_of<const float>(wide_.data(), config_, row, num_new, config_.num_q_heads,
                                          config_.num_kv_heads);
  const auto values =
      heads_of<const float>(wide_.data(), config_, row, num_new,
                            config_.num_q_heads + config_.num_kv_heads, config_.num_kv_heads);
  cache.append(layer.cache, chunk.sequence, keys, values);
  const auto queries = heads_of<float>(wide_.data(), config_, row, num_new, 0, config_.num_q_heads);
  if (is_observed()) copy_rows(queries, observed_);
  for_row_ranges(num_new, pool_, [&](int64_t begin, int64_t end) {
    rope(rows_of(queries, begin, end), first + begin, rope_);
  });
  if (is_observed()) {
    observer_({.layer = layer.model,
               .sequence = chunk.sequence,
               .first_position = first,
               .queries = row_major<const float, 3>(
                   observed_.data(), {num_new, config_.num_q_heads, config_.head_dim}),
               .rotated_queries = as_const(queries),
               .keys = keys,
               .values = values});
  }
  cache.prepare_view(layer.cache, chunk.sequence);
  std::vector<AttendJob> jobs;
  const int64_t latents_of_token = config_.num_q_heads * latent_width;
  for (int64_t head = 0; head < config_.num_kv_heads; ++head) {
    const int64_t offset = row * width + head * config_.group() * config_.head_dim;
    jobs.push_back({.query = wide_.data() + offset,
                    .out = attention_.data() + offset,
                    .query_stride = width,
                    .num_queries = num_new,
                    .first_position = first,
                    .runs = cache.view(layer.cache, chunk.sequence, head),
                    .latent_sums = {.data = latents_.data() + row * latents_of_token +
                                            head * config_.group() * latent_width,
                                    .stride = latents_of_token,
                                    .width = latent_width}});
  }
  const AttendShape shape{config_.head_dim, config_.group(), score_scale(config_)};
  // Before the next sequence's view replaces this one.
  if (attention_function_) return attention_function_(layer.model, chunk.sequence, shape, jobs);
  attend(shape, jobs, precision_, pool_);
}

void Transformer::mlp_block(int64_t layer, TensorView<float, 2> residual) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  const int64_t n = residual.shape[0];
  const auto normed = row_major(normed_.data(), {n, config_.hidden});
  norm_rows(as_const(residual), weights.mlp_norm, normed);
  linear_swiglu(weights.gate, weights.up, as_const(normed),
                row_major(wide_.data(), {n, config_.ffn}), linear_context());
  linear(weights.down, row_major<const float, 2>(wide_.data(), {n, config_.ffn}), residual,
         Epilogue::kAdd, linear_context());
}

void Transformer::logits(TensorView<const float, 2> hidden, TensorView<float, 2> out) {
  linear(weights_.lm_head, hidden, out, Epilogue::kStore, linear_context());
}

int64_t Transformer::scratch_bytes() const {
  int64_t total = linear_scratch_.input.num_bytes();
  for (const auto& buffer : linear_scratch_.per_worker) total += buffer.num_bytes();
  for (const auto* buffer : {&residual_, &normed_, &wide_, &attention_, &latents_, &observed_}) {
    total += buffer->num_bytes();
  }
  return total;
}

}  // namespace kvquant
