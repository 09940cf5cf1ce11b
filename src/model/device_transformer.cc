#include "model/device_transformer.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "kvquant/error.h"
#include "model/check_chunks.h"
#include "ops/rope_scaling.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr int64_t kRowsAtOnce = 256;  // of a matrix on its way to the device

// Rows as `read` gives them, in strips.
template <class T, class Read, class Convert>
DeviceArray<T> upload_rows(CudaDevice& device, int64_t num_rows, int64_t width, const Read& read,
                           const Convert& convert) {
  DeviceArray<T> out(device, num_rows * width);
  std::vector<float> row(static_cast<size_t>(width));
  std::vector<T> strip;
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t end = std::min(num_rows, first + kRowsAtOnce);
    strip.clear();
    for (int64_t i = first; i < end; ++i) {
      read(i, std::span<float>(row));
      for (const float x : row) strip.push_back(convert(x));
    }
    device.copy_in(out.data() + first * width, strip.data(),
                   static_cast<int64_t>(strip.size() * sizeof(T)));
  }
  return out;
}

DeviceArray<float> upload(CudaDevice& device, const std::vector<float>& x) {
  return {device, std::span(x)};
}

}  // namespace

DeviceTransformer::Matrix::Matrix(CudaDevice& device, const PackedMatrix& from, Precision precision)
    : f32(device), bf16(device), num_out(from.num_out()), num_in(from.num_in()) {
  const auto read = [&](int64_t row, std::span<float> out) { from.read_row(row, out); };
  if (precision == Precision::kBF16) {
    bf16 = upload_rows<BFloat16>(device, num_out, num_in, read,
                                 [](float x) { return to_bfloat16(x); });
  } else {
    f32 = upload_rows<float>(device, num_out, num_in, read, [](float x) { return x; });
  }
}

DeviceTransformer::Layer::Layer(CudaDevice& device, const LayerWeights& from, Precision precision)
    : attention_norm(upload(device, from.attention_norm)),
      qkv_bias(upload(device, from.qkv_bias)),
      query_norm(upload(device, from.query_norm)),
      key_norm(upload(device, from.key_norm)),
      mlp_norm(upload(device, from.mlp_norm)),
      qkv(device, from.qkv, precision),
      output(device, from.output, precision),
      gate(device, from.gate, precision),
      up(device, from.up, precision),
      down(device, from.down, precision) {}

DeviceTransformer::DeviceTransformer(const Checkpoint& checkpoint, Precision precision,
                                     CudaDevice& device, ThreadPool& pool)
    : config_(checkpoint.config()),
      precision_(precision),
      device_(device),
      rope_(config_.max_context, rope_frequencies(config_.head_dim, config_.rope_theta,
                                                  config_.rope_scaling, config_.max_context)),
      final_norm_(device),
      embedding_(device),
      tokens_(device),
      positions_(device),
      residual_(device),
      normed_(device),
      qkv_(device),
      attention_(device),
      mlp_(device),
      rounded_(device),
      asked_(device),
      logits_(device),
      best_(device, int64_t{1}),
      are_finite_(device) {
  const ModelWeights weights = load_weights(checkpoint, precision, pool);
  for (const LayerWeights& layer : weights.layers) layers_.emplace_back(device, layer, precision);
  final_norm_ = upload(device, weights.final_norm);
  lm_head_ = std::make_unique<Matrix>(device, weights.lm_head, precision);
  // The embedding itself, at the precision of the file: it is added to, not multiplied with.
  const auto read = [&](int64_t row, std::span<float> out) {
    checkpoint.read_row(kEmbedding, row, out);
  };
  embedding_ = upload_rows<float>(device, config_.vocab_size, config_.hidden, read,
                                  [](float x) { return x; });
}

KvShape DeviceTransformer::kv_shape() const {
  return {config_.num_layers, config_.num_kv_heads, config_.head_dim, config_.sliding_window};
}

int64_t DeviceTransformer::weight_bytes() const {
  int64_t bytes = final_norm_.num_bytes() + lm_head_->num_bytes() + embedding_.num_bytes();
  for (const Layer& layer : layers_) {
    for (const auto* array : {&layer.attention_norm, &layer.qkv_bias, &layer.query_norm,
                              &layer.key_norm, &layer.mlp_norm}) {
      bytes += array->num_bytes();
    }
    for (const auto* matrix : {&layer.qkv, &layer.output, &layer.gate, &layer.up, &layer.down}) {
      bytes += matrix->num_bytes();
    }
  }
  return bytes;
}

int64_t DeviceTransformer::qkv_width() const {
  return (config_.num_q_heads + 2 * config_.num_kv_heads) * config_.head_dim;
}

void DeviceTransformer::upload_batch(std::span<const ForwardChunk> chunks,
                                     const DeviceCache& cache) {
  std::vector<int32_t> tokens;
  std::vector<int64_t> positions;
  for (const auto& chunk : chunks) {
    int64_t position = cache.length(chunk.sequence);
    for (const int32_t token : chunk.tokens) {
      tokens.push_back(token);
      positions.push_back(position++);
    }
  }
  const int64_t n = std::ssize(tokens);
  tokens_at_ = staged(device_, std::span<const int32_t>(tokens), tokens_);
  positions_at_ = staged(device_, std::span<const int64_t>(positions), positions_);
  residual_.reserve_discarding(n * config_.hidden);
  normed_.reserve_discarding(n * config_.hidden);
  are_finite_.reserve_discarding(n);
  qkv_.reserve_discarding(n * qkv_width());
  attention_.reserve_discarding(n * qkv_width());
  mlp_.reserve_discarding(2 * n * config_.ffn);
}

void DeviceTransformer::round(Rows x, int64_t num_rows, int64_t width) {
  if (precision_ != Precision::kBF16) return;
  rounded_.reserve_discarding(num_rows * width);
  device_.run(CudaRound{x.data, x.stride, rounded_.data(), num_rows, width});
}

// x has been rounded.
void DeviceTransformer::multiply(const Matrix& matrix, Rows x, Rows out, int64_t num_rows,
                                 Epilogue epilogue) {
  const bool is_bf16 = precision_ == Precision::kBF16;
  device_.multiply({.weights = matrix.f32.data(),
                    .bf16_weights = matrix.bf16.data(),
                    .num_out = matrix.num_out,
                    .num_in = matrix.num_in,
                    .x = is_bf16 ? nullptr : x.data,
                    .bf16_x = is_bf16 ? rounded_.data() : nullptr,
                    .x_stride = is_bf16 ? matrix.num_in : x.stride,
                    .out = out.data,
                    .out_stride = out.stride,
                    .num_rows = num_rows,
                    .epilogue = epilogue});
}

void DeviceTransformer::norm(Rows x, const DeviceArray<float>& weight, Rows out, int64_t num_rows) {
  device_.run(CudaNorm{x.data, x.stride, weight.data(), out.data, out.stride, num_rows, 1,
                       config_.hidden, config_.norm_eps});
}

// Biases, and the norms of queries and keys.
void DeviceTransformer::finish_qkv(const Layer& layer, int64_t num_rows) {
  const int64_t width = qkv_width(), head_dim = config_.head_dim;
  if (layer.qkv_bias.size() > 0) {
    device_.run(CudaAdd{layer.qkv_bias.data(), 0, qkv_.data(), width, num_rows, width});
  }
  if (layer.query_norm.size() == 0) return;
  const auto norm_heads = [&](float* first, int64_t count, const DeviceArray<float>& weight) {
    device_.run(CudaNorm{first, width, weight.data(), first, width, num_rows, count, head_dim,
                         config_.norm_eps});
  };
  norm_heads(qkv_.data(), config_.num_q_heads, layer.query_norm);
  norm_heads(qkv_.data() + config_.num_q_heads * head_dim, config_.num_kv_heads, layer.key_norm);
}

void DeviceTransformer::attention_block(int64_t index, std::span<const ForwardChunk> chunks,
                                        DeviceCache& cache, int64_t num_rows) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int64_t width = qkv_width(), head_dim = config_.head_dim, hidden = config_.hidden;
  const int64_t keys = config_.num_q_heads * head_dim;
  const int64_t values = keys + config_.num_kv_heads * head_dim;
  norm({residual_.data(), hidden}, layer.attention_norm, {normed_.data(), hidden}, num_rows);
  round({normed_.data(), hidden}, num_rows, hidden);
  multiply(layer.qkv, {normed_.data(), hidden}, {qkv_.data(), width}, num_rows, Epilogue::kStore);
  finish_qkv(layer, num_rows);
  std::vector<DeviceCache::Queries> queries;
  int64_t row = 0;
  for (const auto& chunk : chunks) {
    float* first = qkv_.data() + row * width;
    const int64_t count = std::ssize(chunk.tokens);
    cache.append(index, chunk.sequence, {first + keys, first + values, width, count});
    queries.push_back({chunk.sequence, first, attention_.data() + row * width, width, count});
    row += count;
  }
  device_.run(CudaRope{qkv_.data(), width, positions_at_, cache.rope().cos, cache.rope().sin,
                       num_rows, config_.num_q_heads, head_dim});
  cache.attend(index, queries, {head_dim, config_.group(), score_scale(config_)}, precision_);
  for (const auto& chunk : chunks) cache.settle(index, chunk.sequence);
  round({attention_.data(), width}, num_rows, layer.output.num_in);
  multiply(layer.output, {attention_.data(), width}, {residual_.data(), hidden}, num_rows,
           Epilogue::kAdd);
}

void DeviceTransformer::mlp_block(const Layer& layer, int64_t num_rows) {
  const int64_t hidden = config_.hidden, ffn = config_.ffn, stride = 2 * ffn;
  float *gate = mlp_.data(), *up = gate + ffn;
  norm({residual_.data(), hidden}, layer.mlp_norm, {normed_.data(), hidden}, num_rows);
  round({normed_.data(), hidden}, num_rows, hidden);
  multiply(layer.gate, {normed_.data(), hidden}, {gate, stride}, num_rows, Epilogue::kStore);
  multiply(layer.up, {normed_.data(), hidden}, {up, stride}, num_rows, Epilogue::kStore);
  device_.run(CudaGate{gate, up, stride, gate, stride, num_rows, ffn});
  round({gate, stride}, num_rows, ffn);
  multiply(layer.down, {gate, stride}, {residual_.data(), hidden}, num_rows, Epilogue::kAdd);
}

void DeviceTransformer::forward(std::span<const ForwardChunk> chunks, DeviceCache& cache) {
  check_chunks(config_, chunks, cache);
  const bool is_step = std::all_of(chunks.begin(), chunks.end(),
                                   [](const auto& chunk) { return chunk.tokens.size() == 1; });
  StepOf step(device_, is_step);
  upload_batch(chunks, cache);
  int64_t n = 0;
  for (const auto& chunk : chunks) n += std::ssize(chunk.tokens);
  const int64_t hidden = config_.hidden;
  device_.run(CudaEmbed{embedding_.data(), nullptr, tokens_at_, residual_.data(), n, hidden});
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    attention_block(layer, chunks, cache, n);
    mlp_block(layers_[static_cast<size_t>(layer)], n);
  }
  norm({residual_.data(), hidden}, final_norm_, {normed_.data(), hidden}, n);
  device_.run(CudaFinite{normed_.data(), hidden, are_finite_.data(), n, hidden});
  step.end();
  num_rows_ = n;
  // Whatever went wrong on the way, numbers too large for the cache among it, ends as NaN here.
  const auto are_finite = are_finite_.read(n);
  if (!std::all_of(are_finite.begin(), are_finite.end(), [](int32_t x) { return x == 1; })) {
    throw FormatError("the model's hidden states are not finite after the last layer");
  }
}

const float* DeviceTransformer::hidden_rows(int64_t first_row, int64_t num_rows) const {
  check_arg(0 <= first_row && 0 < num_rows && first_row + num_rows <= num_rows_,
            "there are no hidden states of rows " + std::to_string(first_row) + " to " +
                std::to_string(first_row + num_rows - 1) + " of " + std::to_string(num_rows_));
  return normed_.data() + first_row * config_.hidden;
}

void DeviceTransformer::hidden(int64_t first_row, TensorView<float, 2> out) {
  const int64_t width = config_.hidden;
  check_arg(out.shape[1] == width && out.stride[0] == width,
            "hidden: rows have another width, or gaps");
  device_.copy_out(out.data, hidden_rows(first_row, out.shape[0]), out.shape[0] * width * 4);
}

// Of rows on the device.
void DeviceTransformer::find_logits(const float* hidden, int64_t num_rows) {
  const int64_t width = config_.hidden, vocab = config_.vocab_size;
  logits_.reserve_discarding(num_rows * vocab);
  round({const_cast<float*>(hidden), width}, num_rows, width);
  multiply(*lm_head_, {const_cast<float*>(hidden), width}, {logits_.data(), vocab}, num_rows,
           Epilogue::kStore);
}

void DeviceTransformer::logits(int64_t first_row, TensorView<float, 2> out) {
  const int64_t num_rows = out.shape[0], vocab = config_.vocab_size;
  check_arg(out.shape[1] == vocab && out.stride[0] == vocab,
            "logits: rows have another width, or gaps");
  find_logits(hidden_rows(first_row, num_rows), num_rows);
  device_.copy_out(out.data, logits_.data(), num_rows * vocab * 4);
}

void DeviceTransformer::logits(TensorView<const float, 2> hidden, TensorView<float, 2> out) {
  const int64_t num_rows = hidden.shape[0], width = config_.hidden, vocab = config_.vocab_size;
  check_arg(hidden.shape[1] == width && out.shape[0] == num_rows && out.shape[1] == vocab &&
                hidden.stride[0] == width && out.stride[0] == vocab,
            "logits: hidden states or their logits have another shape, or gaps");
  asked_.assign(std::span(hidden.data, static_cast<size_t>(num_rows * width)));
  find_logits(asked_.data(), num_rows);
  device_.copy_out(out.data, logits_.data(), num_rows * vocab * 4);
}

int32_t DeviceTransformer::most_likely(int64_t row) {
  find_logits(hidden_rows(row, 1), 1);
  device_.run(CudaArgmax{logits_.data(), config_.vocab_size, best_.data(), 1, config_.vocab_size});
  return best_.read(1)[0];
}

}  // namespace kvquant
