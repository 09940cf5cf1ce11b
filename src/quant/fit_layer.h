// From one layer's activations to its calibration: the one place that decides what is fitted to
// what.
#pragma once

#include <vector>

#include "base/threads.h"
#include "quant/calibration.h"
#include "quant/fit_choices.h"
#include "quant/layer_activations.h"
#include "quant/rounding_feedback.h"

namespace kvquant {

struct FitOptions {
  FitChoices choices = {};
  int64_t rank = 0;  // components of the stored bases; 0: head_dim
  // Of the model's rotation: what errors of keys cost. Null: all the same, and rounding has no
  // feedback whatever was chosen.
  const LagMetric* lag_metric = nullptr;
  // For kFisher: squared gradients of this layer, a mean per channel, [H * D] each.
  std::vector<float> key_fisher{}, value_fisher{};
};

// Deterministic at any number of threads. Throws std::invalid_argument when the views don't fit
// together or Fisher weights have no gradients, FormatError when a key or value is not finite.
LayerCalibration fit_layer(const LayerActivations& activations, const FitOptions& options,
                           ThreadPool& pool);

}  // namespace kvquant
