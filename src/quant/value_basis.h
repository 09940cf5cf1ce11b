// From a low-rank codec of values to its linear map: which components are kept, and how a value
// becomes coordinates along them and comes back. Per KV head, with A the rows `encode` and D those
// of `decode`,
//
//   z = A (v - mean)      v' = mean + sum_r z_r D_r
//
//   pcaR    the first R principal components of a calibration; A = D, orthonormal
//   pcawR   the first R of those that keep the error of the attention output small, times a power
//           of two (D: divided by it) that gives latents about the size of values
//   lnns    all directions but (1, ..., 1) / sqrt(d); A = D, mean 0, no calibration
//   +had    A and D times the Hadamard transform of the components (base/walsh_hadamard.h)
//   +wfB    components that get as many bits as each other (waterfill.h) are rotated among
//           themselves, by the transform of 2^n of them at a time, then scaled: all latents are
//           about equally large and serve one scale. The last components may be left out
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "formats/code_bands.h"
#include "kvquant/spec.h"
#include "quant/calibration.h"

namespace kvquant {

struct ValueBasis {
  int64_t rank = 0;
  std::vector<float> mean;    // [H, D]
  std::vector<float> encode;  // [H, rank, D]; empty: the same as decode
  std::vector<float> decode;  // [H, rank, D]
  CodeBands bands{};          // of wf: of all heads alike
  // Channels of values up to this magnitude have latents that fp16 holds.
  float largest_value = 0;

  const std::vector<float>& encoder() const { return encode.empty() ? decode : encode; }
};

struct BasisShape {
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// Of a codec whose values are latents (codec_table.h). Throws std::invalid_argument when it needs a
// calibration and there is none (null), when that has bases of a lower rank, or no fp16 numbers
// come of it.
// key_weights: see make_key_basis, empty of values.
ValueBasis make_value_basis(const Codec& codec, const BasisShape& shape,
                            const LayerCalibration* calibration,
                            std::span<const float> key_weights = {});

// Components that are channels: for a cache where only sizes matter. There are no codebooks and
// ranges, those are as without a calibration.
Calibration identity_bases(const CalibrationShape& shape);

}  // namespace kvquant
