#include "model/layer_stream.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kvquant/error.h"
#include "model/calibration_fit.h"

namespace kvquant {
namespace {

void check_samples(Model& model, std::span<const std::vector<int32_t>> samples, int64_t ubatch) {
  check_arg(!samples.empty(), "layer stream: there is no sample");
  check_arg(ubatch > 0, fmt::format("layer stream: ubatch {} is not positive", ubatch));
  check_arg(!model.transformer().is_observed(), "layer stream: the model has hooks already");
  const size_t length = samples[0].size();
  const ModelConfig& config = model.config();
  check_arg(length > 0 && static_cast<int64_t>(length) <= config.max_context,
            fmt::format("layer stream: samples of {} tokens, the model's context is {}", length,
                        config.max_context));
  for (const auto& sample : samples) {
    check_arg(sample.size() == length,
              fmt::format("layer stream: samples of {} and {} tokens", length, sample.size()));
    for (const int32_t token : sample) {
      check_arg(0 <= token && token < config.vocab_size,
                fmt::format("layer stream: token {} is not in the vocabulary of {}", token,
                            config.vocab_size));
    }
  }
}

// Row-major [num_tokens, num_heads, head_dim].
class Activations {
 public:
  Activations(int64_t num_tokens, int64_t num_heads, int64_t head_dim)
      : buffer_(num_tokens * num_heads * head_dim),
        view_(row_major(buffer_.data(), {num_tokens, num_heads, head_dim})) {}

  void write(TensorView<const float, 3> x, int64_t first_row) {
    const int64_t width = x.shape[1] * x.shape[2];  // heads of a row lie side by side
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      std::copy_n(&x(t, 0, 0), width, &view_(first_row + t, 0, 0));
    }
  }
  TensorView<float, 3> rows(int64_t first, int64_t count) const {
    return {.data = &view_(first, 0, 0),
            .shape = {count, view_.shape[1], view_.shape[2]},
            .stride = {view_.stride[0], view_.stride[1], 1}};
  }
  TensorView<const float, 3> view() const {
    return row_major<const float, 3>(buffer_.data(),
                                     {view_.shape[0], view_.shape[1], view_.shape[2]});
  }

 private:
  Buffer<float> buffer_;
  TensorView<float, 3> view_;
};

KvShape one_layer(KvShape shape) {
  shape.num_layers = 1;
  return shape;
}

class LayerStream {
 public:
  LayerStream(Model& model, std::span<const std::vector<int32_t>> samples, int64_t ubatch)
      : model_(model),
        transformer_(model.transformer()),
        config_(model.config()),
        samples_(samples),
        ubatch_(ubatch),
        num_samples_(static_cast<int64_t>(samples.size())),
        seq_len_(static_cast<int64_t>(samples[0].size())),
        residual_(num_samples_ * seq_len_ * config_.hidden),
        keys_(num_samples_ * seq_len_, config_.num_kv_heads, config_.head_dim),
        rotated_keys_(num_samples_ * seq_len_, config_.num_kv_heads, config_.head_dim),
        values_(num_samples_ * seq_len_, config_.num_kv_heads, config_.head_dim),
        queries_(num_samples_ * seq_len_, config_.num_q_heads, config_.head_dim),
        rotated_queries_(num_samples_ * seq_len_, config_.num_q_heads, config_.head_dim),
        cache_(one_layer(transformer_.kv_shape()), parse_spec("fp16"), CacheMode::kAsServed,
               transformer_.rope_table(), model.pool()) {}

  Buffer<float> run(const LayerConsumer& consumer, const Progress& progress) {
    const Observation observation(transformer_, [this](const ObservedChunk& c) { keep(c); });
    const int64_t units = config_.num_layers * (num_samples_ + 1);
    int64_t done = 0;
    for (int64_t s = 0; s < num_samples_; ++s) {
      transformer_.embed(samples_[static_cast<size_t>(s)], residual_rows(s, 0, seq_len_));
    }
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (sample_ = 0; sample_ < num_samples_; ++sample_) {
        run_sample(layer);
        report(progress, ++done, units);
      }
      read_output_gram(layer);
      consumer(layer, activations());
      report(progress, ++done, units);
    }
    // Infinities of the last layer that attention doesn't see.
    if (!std::all_of(residual_.span().begin(), residual_.span().end(),
                     [](float x) { return std::isfinite(x); })) {
      throw FormatError("the model's hidden states are not finite after the last layer");
    }
    return std::move(residual_);
  }

 private:
  TensorView<float, 2> residual_rows(int64_t sample, int64_t begin, int64_t count) {
    return row_major(residual_.data() + (sample * seq_len_ + begin) * config_.hidden,
                     {count, config_.hidden});
  }

  void run_sample(int64_t layer) {
    const auto sequence = cache_.add_sequence();
    const std::span tokens(samples_[static_cast<size_t>(sample_)]);
    try {
      for (int64_t begin = 0; begin < seq_len_; begin += ubatch_) {
        const int64_t size = std::min(ubatch_, seq_len_ - begin);
        const ForwardChunk chunk{
            sequence, tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
        transformer_.run_layer(layer, chunk, cache_, 0, residual_rows(sample_, begin, size));
      }
    } catch (const FormatError& error) {  // of a cache that knows one layer only
      throw FormatError(fmt::format("layer {}, run alone: {}", layer, error.what()));
    }
    cache_.drop(sequence);
  }

  void keep(const ObservedChunk& chunk) {
    const int64_t row = sample_ * seq_len_ + chunk.first_position;
    keys_.write(chunk.keys, row);
    rotated_keys_.write(chunk.keys, row);
    rope(rotated_keys_.rows(row, chunk.keys.shape[0]), chunk.first_position,
         transformer_.rope_table());
    values_.write(chunk.values, row);
    queries_.write(chunk.queries, row);
    rotated_queries_.write(chunk.rotated_queries, row);
  }

  void read_output_gram(int64_t layer) {
    const int64_t width = config_.num_q_heads * config_.head_dim;
    const std::string name = fmt::format("model.layers.{}.self_attn.o_proj.weight", layer);
    Buffer<float> weights(config_.hidden * width);
    model_.pool().parallel_for(config_.hidden, [&](int64_t row, int) {
      model_.checkpoint().read_row(name, row,
                                   {weights.data() + row * width, static_cast<size_t>(width)});
    });
    output_gram_ = sum_output_gram(weights.span(), calibration_shape(config_), model_.pool());
  }

  LayerActivations activations() const {
    return {.num_samples = num_samples_,
            .seq_len = seq_len_,
            .keys = keys_.view(),
            .rotated_keys = rotated_keys_.view(),
            .values = values_.view(),
            .queries = queries_.view(),
            .rotated_queries = rotated_queries_.view(),
            .output_gram = output_gram_};
  }

  Model& model_;
  Transformer& transformer_;
  const ModelConfig& config_;
  std::span<const std::vector<int32_t>> samples_;
  int64_t ubatch_;
  int64_t num_samples_, seq_len_;
  int64_t sample_ = 0;      // that runs now
  Buffer<float> residual_;  // [num_samples * seq_len, hidden]
  Activations keys_, rotated_keys_, values_, queries_, rotated_queries_;
  std::vector<double> output_gram_;
  KvCache cache_;  // of one layer, for one sample at a time
};

}  // namespace

Buffer<float> stream_layers(Model& model, std::span<const std::vector<int32_t>> samples,
                            const LayerStreamOptions& options, const LayerConsumer& consumer,
                            const Progress& progress) {
  check_samples(model, samples, options.ubatch);
  return LayerStream(model, samples, options.ubatch).run(consumer, progress);
}

}  // namespace kvquant
