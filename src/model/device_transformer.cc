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

// What devices are to have equal shares of.
LayerBytes layer_bytes(const ModelConfig& config, Precision precision) {
  const int64_t element = precision == Precision::kBF16 ? 2 : 4;
  const int64_t q = config.num_q_heads * config.head_dim,
                kv = config.num_kv_heads * config.head_dim;
  const int64_t words = config.vocab_size * config.hidden;
  return {.layer = config.hidden * (2 * q + 2 * kv + 3 * config.ffn) * element,
          .before = words * 4,
          .behind = words * element};
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

int64_t DeviceTransformer::Layer::num_bytes() const {
  int64_t bytes = 0;
  for (const auto* array : {&attention_norm, &qkv_bias, &query_norm, &key_norm, &mlp_norm}) {
    bytes += array->num_bytes();
  }
  for (const auto* matrix : {&qkv, &output, &gate, &up, &down}) bytes += matrix->num_bytes();
  return bytes;
}

DeviceTransformer::DeviceTransformer(const Checkpoint& checkpoint, Precision precision,
                                     const std::vector<CudaDevice*>& devices, ThreadPool& pool)
    : config_(checkpoint.config()),
      precision_(precision),
      split_(split_layers(devices, config_.num_layers, layer_bytes(config_, precision))),
      rope_(config_.max_context, rope_frequencies(config_.head_dim, config_.rope_theta,
                                                  config_.rope_scaling, config_.max_context)),
      embedding_(*devices.front()),
      final_norm_(*devices.back()),
      asked_(*devices.back()),
      logits_(*devices.back()),
      named_(*devices.back()),
      likely_(*devices.back()),
      likely_ids_(*devices.back()),
      are_finite_(*devices.back()) {
  const ModelWeights weights = load_weights(checkpoint, precision, pool);
  for (size_t i = 0; i < devices.size(); ++i) {
    Stage& stage = *stages_.emplace_back(std::make_unique<Stage>(*devices[i]));
    stage.first_layer = split_.first_layer(i);
    for (int64_t layer = stage.first_layer; layer < split_.ends[i]; ++layer) {
      stage.layers.emplace_back(*devices[i], weights.layers[static_cast<size_t>(layer)], precision);
    }
  }
  final_norm_ = upload(*devices.back(), weights.final_norm);
  lm_head_ = std::make_unique<Matrix>(*devices.back(), weights.lm_head, precision);
  // The embedding itself, at the precision of the file: it is added to, not multiplied with.
  const auto read = [&](int64_t row, std::span<float> out) {
    checkpoint.read_row(kEmbedding, row, out);
  };
  embedding_ = upload_rows<float>(*devices.front(), config_.vocab_size, config_.hidden, read,
                                  [](float x) { return x; });
}

KvShape DeviceTransformer::kv_shape() const {
  return {config_.num_layers, config_.num_kv_heads, config_.head_dim, config_.sliding_window};
}

int64_t DeviceTransformer::weight_bytes() const {
  int64_t bytes = final_norm_.num_bytes() + lm_head_->num_bytes() + embedding_.num_bytes();
  for (const auto& stage : stages_) {
    for (const Layer& layer : stage->layers) bytes += layer.num_bytes();
  }
  return bytes;
}

int64_t DeviceTransformer::qkv_width() const {
  return (config_.num_q_heads + 2 * config_.num_kv_heads) * config_.head_dim;
}

DeviceTransformer::Batch DeviceTransformer::batch_of(std::span<const ForwardChunk> chunks,
                                                     const DeviceCache& cache) {
  Batch batch{chunks, {}, {}};
  for (const auto& chunk : chunks) {
    int64_t position = cache.length(chunk.sequence);
    for (const int32_t token : chunk.tokens) {
      batch.tokens.push_back(token);
      batch.positions.push_back(position++);
    }
  }
  return batch;
}

void DeviceTransformer::reserve(Stage& stage, int64_t num_rows) const {
  stage.residual.reserve_discarding(num_rows * config_.hidden);
  stage.normed.reserve_discarding(num_rows * config_.hidden);
  stage.qkv.reserve_discarding(num_rows * qkv_width());
  stage.attention.reserve_discarding(num_rows * qkv_width());
  stage.mlp.reserve_discarding(2 * num_rows * config_.ffn);
}

void DeviceTransformer::round(Stage& stage, Rows x, int64_t num_rows, int64_t width) {
  if (precision_ != Precision::kBF16) return;
  stage.rounded.reserve_discarding(num_rows * width);
  stage.device.run(CudaRound{x.data, x.stride, stage.rounded.data(), num_rows, width});
}

// x has been rounded.
void DeviceTransformer::multiply(Stage& stage, const Matrix& matrix, Rows x, Rows out,
                                 int64_t num_rows, Epilogue epilogue) {
  const bool is_bf16 = precision_ == Precision::kBF16;
  stage.device.multiply({.weights = matrix.f32.data(),
                         .bf16_weights = matrix.bf16.data(),
                         .num_out = matrix.num_out,
                         .num_in = matrix.num_in,
                         .x = is_bf16 ? nullptr : x.data,
                         .bf16_x = is_bf16 ? stage.rounded.data() : nullptr,
                         .x_stride = is_bf16 ? matrix.num_in : x.stride,
                         .out = out.data,
                         .out_stride = out.stride,
                         .num_rows = num_rows,
                         .epilogue = epilogue});
}

void DeviceTransformer::norm(Stage& stage, Rows x, const DeviceArray<float>& weight, Rows out,
                             int64_t num_rows) {
  stage.device.run(CudaNorm{x.data, x.stride, weight.data(), out.data, out.stride, num_rows, 1,
                            config_.hidden, config_.norm_eps});
}

// Biases, and the norms of queries and keys.
void DeviceTransformer::finish_qkv(Stage& stage, const Layer& layer, int64_t num_rows) {
  const int64_t width = qkv_width(), head_dim = config_.head_dim;
  float* qkv = stage.qkv.data();
  if (layer.qkv_bias.size() > 0) {
    stage.device.run(CudaAdd{layer.qkv_bias.data(), 0, qkv, width, num_rows, width});
  }
  if (layer.query_norm.size() == 0) return;
  const auto norm_heads = [&](float* first, int64_t count, const DeviceArray<float>& weight) {
    stage.device.run(CudaNorm{first, width, weight.data(), first, width, num_rows, count, head_dim,
                              config_.norm_eps});
  };
  norm_heads(qkv, config_.num_q_heads, layer.query_norm);
  norm_heads(qkv + config_.num_q_heads * head_dim, config_.num_kv_heads, layer.key_norm);
}

void DeviceTransformer::attention_block(Stage& stage, int64_t index, const Batch& batch,
                                        DeviceCache& cache) {
  const Layer& layer = stage.layers[static_cast<size_t>(index - stage.first_layer)];
  const int64_t width = qkv_width(), head_dim = config_.head_dim, hidden = config_.hidden;
  const int64_t keys = config_.num_q_heads * head_dim, n = batch.size();
  const int64_t values = keys + config_.num_kv_heads * head_dim;
  const Rows residual{stage.residual.data(), hidden}, normed{stage.normed.data(), hidden};
  const Rows qkv{stage.qkv.data(), width}, attention{stage.attention.data(), width};
  norm(stage, residual, layer.attention_norm, normed, n);
  round(stage, normed, n, hidden);
  multiply(stage, layer.qkv, normed, qkv, n, Epilogue::kStore);
  finish_qkv(stage, layer, n);
  std::vector<DeviceCache::Queries> queries;
  int64_t row = 0;
  for (const auto& chunk : batch.chunks) {
    float* first = qkv.data + row * width;
    const int64_t count = std::ssize(chunk.tokens);
    cache.append(index, chunk.sequence, {first + keys, first + values, width, count});
    queries.push_back({chunk.sequence, first, attention.data + row * width, width, count});
    row += count;
  }
  const DeviceRope& rope = cache.rope(index);
  stage.device.run(CudaRope{qkv.data, width, stage.positions_at, rope.cos, rope.sin, n,
                            config_.num_q_heads, head_dim});
  cache.attend(index, queries, {head_dim, config_.group(), score_scale(config_)}, precision_);
  for (const auto& chunk : batch.chunks) cache.settle(index, chunk.sequence);
  round(stage, attention, n, layer.output.num_in);
  multiply(stage, layer.output, attention, residual, n, Epilogue::kAdd);
}

void DeviceTransformer::mlp_block(Stage& stage, const Layer& layer, int64_t num_rows) {
  const int64_t hidden = config_.hidden, ffn = config_.ffn, stride = 2 * ffn;
  const Rows residual{stage.residual.data(), hidden}, normed{stage.normed.data(), hidden};
  const Rows gate{stage.mlp.data(), stride}, up{gate.data + ffn, stride};
  norm(stage, residual, layer.mlp_norm, normed, num_rows);
  round(stage, normed, num_rows, hidden);
  multiply(stage, layer.gate, normed, gate, num_rows, Epilogue::kStore);
  multiply(stage, layer.up, normed, up, num_rows, Epilogue::kStore);
  stage.device.run(CudaGate{gate.data, up.data, stride, gate.data, stride, num_rows, ffn});
  round(stage, gate, num_rows, ffn);
  multiply(stage, layer.down, gate, residual, num_rows, Epilogue::kAdd);
}

void DeviceTransformer::run_stage(size_t index, const Batch& batch, DeviceCache& cache) {
  Stage& stage = *stages_[index];
  const int64_t n = batch.size(), hidden = config_.hidden;
  const auto positions = std::span<const int64_t>(batch.positions);
  StepOf step(stage.device, n == std::ssize(batch.chunks));  // one token of each sequence
  stage.positions_at = staged(stage.device, positions, stage.positions);
  if (index == 0) {
    const auto tokens = std::span<const int32_t>(batch.tokens);
    stage.device.run(CudaEmbed{embedding_.data(), nullptr,
                               staged(stage.device, tokens, stage.tokens), stage.residual.data(), n,
                               hidden});
  }
  for (size_t i = 0; i < stage.layers.size(); ++i) {
    attention_block(stage, stage.first_layer + static_cast<int64_t>(i), batch, cache);
    mlp_block(stage, stage.layers[i], n);
  }
  if (index + 1 == stages_.size()) {
    norm(stage, {stage.residual.data(), hidden}, final_norm_, {stage.normed.data(), hidden}, n);
    are_finite_.reserve_discarding(n);
    stage.device.run(CudaFinite{stage.normed.data(), hidden, are_finite_.data(), n, hidden});
  }
  step.end();
}

void DeviceTransformer::hand_on(Stage& from, Stage& to, int64_t num_rows) {
  const int64_t size = num_rows * config_.hidden;
  handed_on_.resize(static_cast<size_t>(size));
  from.device.copy_out(handed_on_.data(), from.residual.data(), size * 4);
  to.device.copy_in(to.residual.data(), handed_on_.data(), size * 4);
}

void DeviceTransformer::forward(std::span<const ForwardChunk> chunks, DeviceCache& cache) {
  check_chunks(config_, chunks, cache);
  const Batch batch = batch_of(chunks, cache);
  const int64_t n = batch.size();
  for (size_t i = 0; i < stages_.size(); ++i) {
    reserve(*stages_[i], n);
    if (i > 0) hand_on(*stages_[i - 1], *stages_[i], n);
    run_stage(i, batch, cache);
  }
  num_rows_ = n;
  // Whatever went wrong on the way, numbers too large for the cache among it, ends as NaN here.
  const auto are_finite = are_finite_.read(n);
  if (!std::all_of(are_finite.begin(), are_finite.end(), [](int32_t x) { return x == 1; })) {
    throw FormatError("the model's hidden states are not finite after the last layer");
  }
}

const float* DeviceTransformer::hidden_rows(int64_t first_row, int64_t num_rows) {
  check_arg(0 <= first_row && 0 < num_rows && first_row + num_rows <= num_rows_,
            "there are no hidden states of rows " + std::to_string(first_row) + " to " +
                std::to_string(first_row + num_rows - 1) + " of " + std::to_string(num_rows_));
  return last().normed.data() + first_row * config_.hidden;
}

void DeviceTransformer::hidden(int64_t first_row, TensorView<float, 2> out) {
  const int64_t width = config_.hidden;
  check_arg(out.shape[1] == width && out.stride[0] == width,
            "hidden: rows have another width, or gaps");
  last().device.copy_out(out.data, hidden_rows(first_row, out.shape[0]), out.shape[0] * width * 4);
}

// Of rows on the device.
void DeviceTransformer::find_logits(const float* hidden, int64_t num_rows) {
  const int64_t width = config_.hidden, vocab = config_.vocab_size;
  logits_.reserve_discarding(num_rows * vocab);
  const Rows rows{const_cast<float*>(hidden), width};
  round(last(), rows, num_rows, width);
  multiply(last(), *lm_head_, rows, {logits_.data(), vocab}, num_rows, Epilogue::kStore);
}

void DeviceTransformer::logits(int64_t first_row, TensorView<float, 2> out) {
  const int64_t num_rows = out.shape[0], vocab = config_.vocab_size;
  check_arg(out.shape[1] == vocab && out.stride[0] == vocab,
            "logits: rows have another width, or gaps");
  find_logits(hidden_rows(first_row, num_rows), num_rows);
  last().device.copy_out(out.data, logits_.data(), num_rows * vocab * 4);
}

void DeviceTransformer::logits(TensorView<const float, 2> hidden, TensorView<float, 2> out) {
  const int64_t num_rows = hidden.shape[0], width = config_.hidden, vocab = config_.vocab_size;
  check_arg(hidden.shape[1] == width && out.shape[0] == num_rows && out.shape[1] == vocab &&
                hidden.stride[0] == width && out.stride[0] == vocab,
            "logits: hidden states or their logits have another shape, or gaps");
  asked_.assign(std::span(hidden.data, static_cast<size_t>(num_rows * width)));
  find_logits(asked_.data(), num_rows);
  last().device.copy_out(out.data, logits_.data(), num_rows * vocab * 4);
}

std::vector<TokenLogit> DeviceTransformer::most_likely(int64_t row, const Likely& asked) {
  check_arg(0 < asked.num_tokens && asked.num_tokens <= config_.vocab_size && 0 < asked.count &&
                asked.count <= kMostLikely,
            "most likely tokens: " + std::to_string(asked.count) + " of " +
                std::to_string(asked.num_tokens));
  constexpr int64_t kSegment = 2048;
  CudaDevice& device = last().device;
  find_logits(hidden_rows(row, 1), 1);
  named_.assign(asked.penalised);
  device.run(
      CudaPenalise{logits_.data(), named_.data(), std::ssize(asked.penalised), asked.penalty});
  const int64_t count = asked.count;
  const int64_t num_first = (asked.num_tokens + kSegment - 1) / kSegment * count;
  likely_.reserve_discarding(num_first + count);
  likely_ids_.reserve_discarding(num_first + count);
  float* best = likely_.data() + num_first;
  int32_t* ids = likely_ids_.data() + num_first;
  device.run(CudaBest{logits_.data(), nullptr, asked.num_tokens, kSegment, count, likely_.data(),
                      likely_ids_.data()});
  device.run(CudaBest{likely_.data(), likely_ids_.data(), num_first, num_first, count, best, ids});
  std::vector<float> logits(static_cast<size_t>(count));
  std::vector<int32_t> found(logits.size());
  device.copy_out(logits.data(), best, count * 4);
  device.copy_out(found.data(), ids, count * 4);
  std::vector<TokenLogit> out;
  for (size_t i = 0; i < found.size() && found[i] >= 0; ++i) out.push_back({found[i], logits[i]});
  return out;
}

}  // namespace kvquant
