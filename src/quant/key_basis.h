// From a low-rank codec of keys to its linear map, that of value_basis.h for keys after RoPE:
//
//   pcaR    the first R principal components of rotated keys, and their mean
//   lnns    all directions but (1, ..., 1) / sqrt(d), mean 0, no calibration
//   +had    rotated by the Hadamard transform of the components
//   +wfB    bits by the variance of components times that of queries along them
#pragma once

#include "quant/value_basis.h"

namespace kvquant {

// Of a codec whose keys are latents. Throws what make_value_basis throws, and std::invalid_argument
// for pcaw, which has weights for values alone.
ValueBasis make_key_basis(const Codec& codec, const BasisShape& shape,
                          const LayerCalibration* calibration);

}  // namespace kvquant
