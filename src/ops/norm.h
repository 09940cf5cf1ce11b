// RMSNorm (arXiv 1910.07467): out = x / sqrt(mean(x^2) + eps) * weight, row by row; the sum of
// squares is accumulated in f32 over fixed lanes, so results don't depend on threads.
#pragma once

#include <span>

#include "kvquant/tensor_view.h"

namespace kvquant {

// x, out [num_rows, width], weight [width]; x may be out. Throws std::invalid_argument on shapes
// that differ.
void rms_norm(TensorView<const float, 2> x, std::span<const float> weight, float eps,
              TensorView<float, 2> out);

}  // namespace kvquant
