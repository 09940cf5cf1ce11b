#include "model/calibration_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/parallel_tasks.h"
#include "kvquant/error.h"
#include "model/calibration_source.h"
#include "quant/pca.h"

namespace kvquant {
namespace {

// Per position, [head_dim / 2]; none rotates by more than a radian.
std::vector<double> rope_angles(const RopeTable& table) {
  std::vector<double> angles(static_cast<size_t>(table.head_dim() / 2));
  for (size_t c = 0; c < angles.size(); ++c) {
    angles[c] = std::atan2(table.sin(1)[c], table.cos(1)[c]);
  }
  return angles;
}

void check_options(const CalibrationShape& shape, const CalibrateOptions& options) {
  check_arg(options.num_samples > 0,
            fmt::format("calibrate: {} samples, at least 1 is needed", options.num_samples));
  check_arg(kMinCalibrationSeqLen <= options.seq_len,
            fmt::format("calibrate: samples of {} tokens, at least {} are needed", options.seq_len,
                        kMinCalibrationSeqLen));
  check_arg(0 <= options.rank && options.rank <= shape.head_dim,
            fmt::format("calibrate: rank {} is not in [1, {}], the model's head_dim", options.rank,
                        shape.head_dim));
  check_arg((options.choices.weights == CodebookWeighting::kFisher) == !options.fisher.empty(),
            "calibrate: Fisher weights and a file of squared gradients need each other");
}

std::string describe(const TensorView<const float, 3>& x) {
  return fmt::format("[{}, {}, {}]", x.shape[0], x.shape[1], x.shape[2]);
}

}  // namespace

CalibrationSamples choose_samples(std::span<const TokenizedText> texts, int32_t bos,
                                  const CalibrateOptions& options) {
  const int64_t size = options.seq_len - (bos >= 0 ? 1 : 0);
  std::vector<int64_t> lengths;
  for (const auto& text : texts) lengths.push_back(static_cast<int64_t>(text.tokens.size()));
  const auto windows = choose_windows(lengths, size, options.num_samples, options.seed);
  check_arg(!windows.empty(),
            fmt::format("calibrate: the longest text has {} tokens, fewer than one sample of {}: "
                        "give longer texts or a shorter --seq-len",
                        lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end()),
                        options.seq_len));
  CalibrationSamples out;
  for (const TextWindow& window : windows) {
    const TokenizedText& text = texts[static_cast<size_t>(window.text)];
    const auto tokens = std::span(text.tokens)
                            .subspan(static_cast<size_t>(window.begin), static_cast<size_t>(size));
    out.texts.push_back({.file = std::filesystem::path(text.file).filename().string(),
                         .begin = window.begin,
                         .end = window.begin + size,
                         .hash = hash_of_tokens(tokens)});
    auto& sample = out.tokens.emplace_back();
    if (bos >= 0) sample.push_back(bos);
    sample.insert(sample.end(), tokens.begin(), tokens.end());
  }
  return out;
}

CalibrationFit::CalibrationFit(const FitModel& model, const CalibrateOptions& options,
                               std::vector<CalibrationText> texts)
    : model_(model),
      choices_(options.choices),
      lag_metric_(rope_angles(model.rope), lag_weights(options.seq_len)) {
  check_options(model.shape, options);
  if (!options.fisher.empty()) fisher_.emplace(options.fisher);
  out_.info = {.kvquant_version = "",
               .model_fingerprint = model.fingerprint,
               .shape = model.shape,
               .texts = std::move(texts),
               .seed = options.seed,
               .num_samples = 0,
               .seq_len = options.seq_len,
               .rank = options.rank == 0 ? model.shape.head_dim : options.rank,
               .codebooks = options.choices.codebooks,
               .recipe = to_string(options.choices)};
  out_.info.num_samples = std::ssize(out_.info.texts);
}

FitOptions CalibrationFit::options_of(int64_t layer) const {
  FitOptions fit{.choices = choices_, .rank = out_.info.rank, .lag_metric = &lag_metric_};
  if (fisher_) {
    const int64_t width = model_.shape.num_kv_heads * model_.shape.head_dim;
    const int index = static_cast<int>(layer);
    fit.key_fisher = channel_means(fisher_->read(KvSide::kKey, index, width));
    fit.value_fisher = channel_means(fisher_->read(KvSide::kValue, index, width));
  }
  return fit;
}

void CalibrationFit::add_layer(const LayerActivations& activations) {
  const auto layer = std::ssize(out_.layers);
  const CalibrationInfo& info = out_.info;
  check_arg(
      layer < info.shape.num_layers,
      fmt::format("calibrate: the model has {} layers, and one more comes", info.shape.num_layers));
  const int64_t num_tokens = info.num_samples * info.seq_len;
  const auto check_shape = [&](const char* name, const TensorView<const float, 3>& x,
                               int64_t num_heads) {
    check_arg(
        x.shape[0] == num_tokens && x.shape[1] == num_heads && x.shape[2] == info.shape.head_dim,
        fmt::format("calibrate: {} of layer {} are {}, not [tokens, heads, head_dim] = "
                    "[{}, {}, {}]",
                    name, layer, describe(x), num_tokens, num_heads, info.shape.head_dim));
  };
  check_shape("keys", activations.keys, info.shape.num_kv_heads);
  check_shape("values", activations.values, info.shape.num_kv_heads);
  check_shape("queries", activations.queries, info.shape.num_q_heads);
  try {
    LayerActivations with_outputs = activations;
    if (choices_.bases != ValueBases::kValues) {
      attend_centred_values(activations, model_.outputs, model_.pool, outputs_);
      with_outputs.outputs = row_major<const float, 3>(
          outputs_.data(), {num_tokens, info.shape.num_q_heads, info.shape.head_dim});
    }
    out_.layers.push_back(fit_layer(with_outputs, options_of(layer), model_.pool));
  } catch (const FormatError& error) {
    throw FormatError(fmt::format("layer {}: {}", layer, error.what()));
  }
}

Calibration CalibrationFit::finish() {
  check_arg(std::ssize(out_.layers) == out_.info.shape.num_layers,
            fmt::format("calibrate: {} of {} layers were added", out_.layers.size(),
                        out_.info.shape.num_layers));
  return std::move(out_);
}

std::vector<double> sum_output_gram(std::span<const float> weight, const CalibrationShape& shape,
                                    ThreadPool& pool) {
  const int64_t d = shape.head_dim, width = shape.num_q_heads * d;
  const int64_t group = shape.num_q_heads / shape.num_kv_heads;
  const int64_t hidden = std::ssize(weight) / width;
  std::vector<double> out(static_cast<size_t>(shape.num_kv_heads * d * d));
  parallel_for_throwing(pool, shape.num_kv_heads, [&](int64_t head, int) {
    CovarianceSum sum(d);
    for (int64_t q = head * group; q < (head + 1) * group; ++q) {
      sum.add({.data = weight.data() + q * d, .shape = {hidden, d}, .stride = {width, 1}});
    }
    const auto gram = sum.sum_of_products();
    std::copy(gram.begin(), gram.end(), out.begin() + head * d * d);
  });
  return out;
}

}  // namespace kvquant
