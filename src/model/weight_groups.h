// Weights that a file holds as floats, as groups of 8-bit codes: half of bf16's bytes, so that
// decoding reads half as much, for rounding to 256 steps between the least and the largest weight
// of 32 inputs.
#pragma once

#include <span>

#include "ops/linear.h"

namespace kvquant {

// How weights of matrices are kept.
enum class WeightStorage {
  kAuto,  // as in the file: codes stay codes, floats bf16 (f32 where precision asks for it)
  kBF16,  // all as bf16
  kInt8,  // floats, too, become 8-bit codes where rows are a multiple of 32 long
};

// Codes, scales and offsets of one row for kInt8; out.codes.size() == row.size(), a multiple of 32.
// A weight w comes back as w + e, |e| <= 0.51 (largest - least) / 255 + 2^-11 |least| of its group
// (scale and offset are fp16), if scale and offset are normal fp16 numbers; infinity or NaN in a
// group gives a scale that is not finite, and so do weights beyond fp16's range.
void quantize_to_groups(std::span<const float> row, QuantizedRow out);

}  // namespace kvquant
