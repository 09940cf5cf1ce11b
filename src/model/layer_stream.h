// Runs many samples through a model layer by layer: all samples through layer 0, then all through
// layer 1. Memory holds the residuals of all samples, and queries, keys and values of one layer
// only, however deep the model is. The result is that of Transformer::forward over an fp16 cache to
// the bit, when both cut the samples into the same chunks.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/progress.h"
#include "model/model.h"
#include "quant/layer_activations.h"

namespace kvquant {

struct LayerStreamOptions {
  int64_t ubatch = 512;  // tokens of a chunk
};

// Called after every layer; the views are valid during the call.
using LayerConsumer = std::function<void(int64_t layer, const LayerActivations& activations)>;

// `samples` have the same length. Returns the residuals after the last layer, before the final
// norm, [num_samples * seq_len, hidden]. Progress counts num_samples + 1 units for every layer, the
// last one when the consumer has returned. Throws std::invalid_argument when there is no sample, a
// sample is empty, longer than the model's context or than another, or holds an unknown token;
// FormatError when activations are not finite.
Buffer<float> stream_layers(Model& model, std::span<const std::vector<int32_t>> samples,
                            const LayerStreamOptions& options, const LayerConsumer& consumer,
                            const Progress& progress = {});

}  // namespace kvquant
