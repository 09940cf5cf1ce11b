#include "model/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "base/check.h"
#include "base/rng.h"
#include "kvquant/error.h"
#include "model/calibration_source.h"
#include "model/layer_stream.h"
#include "model/value_outputs.h"
#include "quant/fit_layer.h"

namespace kvquant {
namespace {

void check_options(const Model& model, const CalibrateOptions& options) {
  const ModelConfig& config = model.config();
  check_arg(options.num_samples > 0,
            fmt::format("calibrate: {} samples, at least 1 is needed", options.num_samples));
  check_arg(kMinCalibrationSeqLen <= options.seq_len && options.seq_len <= config.max_context,
            fmt::format("calibrate: samples of {} tokens are not in [{}, {}], the model's context",
                        options.seq_len, kMinCalibrationSeqLen, config.max_context));
  check_arg(0 <= options.rank && options.rank <= config.head_dim,
            fmt::format("calibrate: rank {} is not in [1, {}], the model's head_dim", options.rank,
                        config.head_dim));
  check_arg((options.choices.weights == CodebookWeighting::kFisher) == !options.fisher.empty(),
            "calibrate: Fisher weights and a file of squared gradients need each other");
}

// Per position, [head_dim / 2]; none rotates by more than a radian.
std::vector<double> rope_angles(const RopeTable& table) {
  std::vector<double> angles(static_cast<size_t>(table.head_dim() / 2));
  for (size_t c = 0; c < angles.size(); ++c) {
    angles[c] = std::atan2(table.sin(1)[c], table.cos(1)[c]);
  }
  return angles;
}

void add_gradients(const FisherFile& file, int layer, const ModelConfig& config, FitOptions& fit) {
  fit.key_fisher = channel_means(file.read(KvSide::kKey, layer, config.kv_dim()));
  fit.value_fisher = channel_means(file.read(KvSide::kValue, layer, config.kv_dim()));
}

}  // namespace

std::vector<TextWindow> choose_windows(std::span<const int64_t> text_lengths, int64_t size,
                                       int64_t num_samples, uint64_t seed) {
  check_arg(size > 0 && num_samples > 0, "calibrate: windows and samples must be positive");
  std::vector<TextWindow> all;
  for (size_t i = 0; i < text_lengths.size(); ++i) {
    for (int64_t begin = 0; begin + size <= text_lengths[i]; begin += size) {
      all.push_back({static_cast<int64_t>(i), begin});
    }
  }
  const auto count = static_cast<int64_t>(all.size());
  if (count <= num_samples) return all;
  const CounterRng random(seed);
  std::vector<TextWindow> chosen;
  for (int64_t s = 0; s < num_samples; ++s) {
    const auto part = [&](int64_t i) {  // i * count / num_samples without overflow
      return i * (count / num_samples) + i * (count % num_samples) / num_samples;
    };
    const auto width = static_cast<uint32_t>(part(s + 1) - part(s));
    const int64_t at = part(s) + random.below(static_cast<uint64_t>(s), width);
    chosen.push_back(all[static_cast<size_t>(at)]);
  }
  return chosen;
}

Calibration calibrate(Model& model, std::span<const TokenizedText> texts,
                      const CalibrateOptions& options, const Progress& progress) {
  check_options(model, options);
  const TokenizerData& data = model.tokenizer().data();
  const int64_t bos = data.add_bos && data.bos >= 0 ? 1 : 0;
  std::vector<int64_t> lengths;
  for (const auto& text : texts) lengths.push_back(static_cast<int64_t>(text.tokens.size()));
  const auto windows =
      choose_windows(lengths, options.seq_len - bos, options.num_samples, options.seed);
  check_arg(!windows.empty(),
            fmt::format("calibrate: the longest text has {} tokens, fewer than one sample of {}: "
                        "give longer texts or a shorter --seq-len",
                        lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end()),
                        options.seq_len));

  Calibration out;
  out.info = {.kvquant_version = "",
              .model_fingerprint = model.checkpoint().fingerprint(),
              .shape = calibration_shape(model.config()),
              .texts = {},
              .seed = options.seed,
              .num_samples = static_cast<int64_t>(windows.size()),
              .seq_len = options.seq_len,
              .rank = options.rank == 0 ? model.config().head_dim : options.rank,
              .codebooks = options.choices.codebooks,
              .recipe = to_string(options.choices)};
  std::vector<std::vector<int32_t>> samples;
  for (const TextWindow& window : windows) {
    const TokenizedText& text = texts[static_cast<size_t>(window.text)];
    const auto tokens =
        std::span(text.tokens)
            .subspan(static_cast<size_t>(window.begin), static_cast<size_t>(options.seq_len - bos));
    out.info.texts.push_back({.file = std::filesystem::path(text.file).filename().string(),
                              .begin = window.begin,
                              .end = window.begin + options.seq_len - bos,
                              .hash = hash_of_tokens(tokens)});
    auto& sample = samples.emplace_back();
    if (bos == 1) sample.push_back(data.bos);
    sample.insert(sample.end(), tokens.begin(), tokens.end());
  }
  std::optional<FisherFile> fisher;
  if (!options.fisher.empty()) fisher.emplace(options.fisher);
  const LagMetric lag_metric(rope_angles(model.transformer().rope_table()),
                             lag_weights(options.seq_len));
  const ValueOutputOptions output_options{.scale = score_scale(model.config()),
                                          .sliding_window = model.config().sliding_window,
                                          .precision = model.transformer().precision()};
  Buffer<float> outputs;
  stream_layers(
      model, samples, {.ubatch = options.ubatch},
      [&](int64_t layer, const LayerActivations& activations) {
        try {
          FitOptions fit{
              .choices = options.choices, .rank = out.info.rank, .lag_metric = &lag_metric};
          if (fisher) add_gradients(*fisher, static_cast<int>(layer), model.config(), fit);
          LayerActivations with_outputs = activations;
          if (options.choices.bases != ValueBases::kValues) {
            attend_centred_values(activations, output_options, model.pool(), outputs);
            with_outputs.outputs = row_major<const float, 3>(
                outputs.data(),
                {activations.num_tokens(), activations.num_q_heads(), activations.head_dim()});
          }
          out.layers.push_back(fit_layer(with_outputs, fit, model.pool()));
        } catch (const FormatError& error) {
          throw FormatError(fmt::format("layer {}: {}", layer, error.what()));
        }
      },
      progress);
  return out;
}

}  // namespace kvquant
