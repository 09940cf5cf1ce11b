// A non-uniform codebook as kernels read it: 2^bits ascending levels in [-1, 1] and the midpoints
// that separate them. The code of y is the number of midpoints below y, so a tie goes to the lower
// index; midpoints are fl(0.5 * fl(a + b)) in f32. Unused entries are zero.
#pragma once

#include <cstdint>
#include <span>

#include "formats/code_planes.h"

namespace kvquant {

struct NuqCodebook {
  int bits = 0;
  int num_levels = 0;
  alignas(64) float levels[kMaxLevels] = {};
  alignas(64) float midpoints[kMaxLevels] = {};
};

// Throws std::invalid_argument unless `levels` are 4, 8 or 16 ascending numbers in [-1, 1].
NuqCodebook make_codebook(std::span<const float> levels);

}  // namespace kvquant
