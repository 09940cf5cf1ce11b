// What the attention of one layer saw in calibration: queries, keys and values of all samples.
#pragma once

#include <cstdint>
#include <span>

#include "kvquant/tensor_view.h"

namespace kvquant {

// The first tokens of a sequence draw attention whatever they are (sinks, arXiv 2309.17453), and
// their keys and values are unlike all others: statistics of a calibration leave them out.
inline constexpr int64_t kCalibrationSinks = 4;

// Views of row-major arrays [num_samples * seq_len, heads, head_dim], one sample after the other;
// every sample starts at position 0.
struct LayerActivations {
  int64_t num_samples = 0;
  int64_t seq_len = 0;                      // tokens of every sample
  TensorView<const float, 3> keys;          // before RoPE, num_kv_heads
  TensorView<const float, 3> rotated_keys;  // after it
  TensorView<const float, 3> values;
  TensorView<const float, 3> queries;          // before RoPE, num_q_heads
  TensorView<const float, 3> rotated_queries;  // after it
  // What an error of the values costs after the output projection: the sum of W_o^T W_o over the
  // query heads of a KV head, [num_kv_heads, head_dim, head_dim].
  std::span<const double> output_gram;
  // Attention outputs over centred values without sinks, num_q_heads (model/value_outputs.h): what
  // bases of values are fitted to. Null data: to the values themselves.
  TensorView<const float, 3> outputs{};

  int64_t num_tokens() const { return num_samples * seq_len; }
  int64_t num_kv_heads() const { return keys.shape[1]; }
  int64_t num_q_heads() const { return queries.shape[1]; }
  int64_t head_dim() const { return keys.shape[2]; }
};

}  // namespace kvquant
