#include "model/calibrate.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/rng.h"
#include "model/calibration_fit.h"
#include "model/layer_stream.h"

namespace kvquant {

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
  const ModelConfig& config = model.config();
  check_arg(kMinCalibrationSeqLen <= options.seq_len && options.seq_len <= config.max_context,
            fmt::format("calibrate: samples of {} tokens are not in [{}, {}], the model's context",
                        options.seq_len, kMinCalibrationSeqLen, config.max_context));
  const TokenizerData& data = model.tokenizer().data();
  const CalibrationSamples samples = choose_samples(texts, data.add_bos ? data.bos : -1, options);
  CalibrationFit fit({.shape = calibration_shape(config),
                      .fingerprint = model.checkpoint().fingerprint(),
                      .rope = model.transformer().rope_table(),
                      .outputs = {.scale = score_scale(config),
                                  .sliding_window = config.sliding_window,
                                  .precision = model.transformer().precision()},
                      .pool = model.pool()},
                     options, samples.texts);
  stream_layers(
      model, samples.tokens, {.ubatch = options.ubatch},
      [&](int64_t, const LayerActivations& activations) { fit.add_layer(activations); }, progress);
  return fit.finish();
}

}  // namespace kvquant
