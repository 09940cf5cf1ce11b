// Fits a calibration to a model's activations, layer after layer, wherever they come from:
// calibrate() streams them out of the engine's own runtime, Python out of other runtimes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/threads.h"
#include "model/calibrate.h"
#include "model/value_outputs.h"
#include "ops/rope.h"
#include "quant/fit_layer.h"

namespace kvquant {

// What of a model matters to a fit beside its activations. `rope` and `pool` must outlive the fit.
struct FitModel {
  CalibrationShape shape;
  std::string fingerprint;
  const RopeTable& rope;
  ValueOutputOptions outputs;
  ThreadPool& pool;
};

// Chosen windows of texts as samples, each with `bos` in front where that is a token (>= 0), and
// where they come from. Throws std::invalid_argument when no text has a whole sample.
struct CalibrationSamples {
  std::vector<std::vector<int32_t>> tokens;  // of one length, options.seq_len
  std::vector<CalibrationText> texts;
};
CalibrationSamples choose_samples(std::span<const TokenizedText> texts, int32_t bos,
                                  const CalibrateOptions& options);

class CalibrationFit {
 public:
  // `texts` say where the samples come from, one for each. Throws std::invalid_argument when the
  // options don't go together or with the model, and what FisherFile throws.
  CalibrationFit(const FitModel& model, const CalibrateOptions& options,
                 std::vector<CalibrationText> texts);

  // The next layer, from the first one on; activations of all samples, without outputs. Throws
  // std::invalid_argument when they aren't of the model and the samples, or when there are as many
  // layers as the model has; FormatError naming the layer when they are not finite.
  void add_layer(const LayerActivations& activations);

  // Requires all layers. info.kvquant_version is left to the caller.
  Calibration finish();

 private:
  FitOptions options_of(int64_t layer) const;

  FitModel model_;
  FitChoices choices_;
  std::optional<FisherFile> fisher_;
  LagMetric lag_metric_;
  Buffer<float> outputs_;
  Calibration out_;
};

// What FitOptions calls output_gram: of an output projection weight [hidden, num_q_heads *
// head_dim], gapless, the sum of W^T W over the query heads of each KV head, [num_kv_heads,
// head_dim, head_dim].
std::vector<double> sum_output_gram(std::span<const float> weight, const CalibrationShape& shape,
                                    ThreadPool& pool);

}  // namespace kvquant
