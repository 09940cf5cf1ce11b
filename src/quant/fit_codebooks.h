// Codebooks of a layer from its activations, for every width and every outlier percent of the
// calibration, fitted to what the encoder will normalise. By default by exact weighted k-means
// (codebook_fit.h) with weights scale^2, so that what is minimised is the error of keys and values,
// not of codes; fit_choices.h has the others. A layer has G codebooks of a width and percent: one,
// or one per KV head, as choices.codebooks says.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "base/threads.h"
#include "quant/calibration.h"
#include "quant/fit_choices.h"
#include "quant/layer_activations.h"

namespace kvquant {

using CodebookSet = std::array<std::vector<float>, kNumCodebooks>;  // [P, G, 2^bits] each

// What is fitted of keys before their codebooks.
struct KeyFit {
  const KeyCalibration& key;               // has its ranges and thresholds
  std::span<const float> channel_weights;  // [H * D], times scale^2; for kQuery and kFisher
};

// Deterministic at any number of threads, as are all here. Where every scale is zero a codebook is
// the middle level alone, filled up.
CodebookSet fit_key_codebooks(const LayerActivations& activations, const KeyFit& fit,
                              const FitChoices& choices, ThreadPool& pool);

enum class ValueRotation { kNone, kHadamard };

struct ValueFit {
  ValueRotation rotation = ValueRotation::kNone;
  // For kFisher. Of rotated values all channels of a head weigh its mean: each holds all of them.
  std::span<const float> channel_weights{};
};

// Of values: rows, their outliers and ranges as online (ranges.h). Requires a power of two as
// head_dim for kHadamard.
CodebookSet fit_value_codebooks(const LayerActivations& activations, const ValueFit& fit,
                                const FitChoices& choices, ThreadPool& pool);

}  // namespace kvquant
