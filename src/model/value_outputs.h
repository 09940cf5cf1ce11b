// What attention makes of values in calibration: its outputs over values less their mean, sinks
// left out. A direction that truncated values lose is lost in these sums, whatever single values
// are, so the bases of low-rank codecs are fitted to them.
#pragma once

#include "base/buffer.h"
#include "base/threads.h"
#include "formats/precision.h"
#include "quant/layer_activations.h"

namespace kvquant {

struct ValueOutputOptions {
  float scale = 0;             // of the scores
  int64_t sliding_window = 0;  // tokens; 0: none
  Precision precision = Precision::kF32;
};

// out [num_samples * seq_len, num_q_heads, head_dim] = sum_t a_t (v_t - mean) over the tokens t
// that a query sees but for the first kCalibrationSinks, with its attention weights a_t over all;
// the mean is that of all such values of the KV head.
void attend_centred_values(const LayerActivations& activations, const ValueOutputOptions& options,
                           ThreadPool& pool, Buffer<float>& out);

}  // namespace kvquant
