// A codebook as kernels read it. Of 2, 3 or 4 bits: 2^bits ascending levels in [-1, 1] and the
// midpoints that separate them; midpoints are fl(0.5 * fl(a + b)) in f32, unused entries are zero.
// Of 8 bits: 256 uniform levels by formula, no table.
//
//   2-4 bits   code of y = number of midpoints below y                 a tie goes to the lower
//   index 8 bits     code of y = ceil(fl(fl(fl(y + 1) * 127.5) - 0.5)), clamped to 0 ... 255
//              level of a code = fl(fl(code - 127.5) * fl(1 / 127.5))
#pragma once

#include <cstdint>
#include <span>

#include "formats/code_planes.h"

namespace kvquant {

struct NuqCodebook {
  int bits = 0;
  int num_levels = 0;
  float noise = 0;  // mean squared rounding error of a y in [-1, 1], as expected
  alignas(64) float levels[kMaxLevels] = {};
  alignas(64) float midpoints[kMaxLevels] = {};
};

// Throws std::invalid_argument unless `levels` are 4, 8 or 16 ascending numbers in [-1, 1].
NuqCodebook make_codebook(std::span<const float> levels);

// Levels fl((2 i - n) / n) with n = 2^bits - 1, of 8 bits by formula. Throws std::invalid_argument
// unless bits is 2, 4 or 8.
NuqCodebook make_uniform_codebook(int bits);

// `y` is not NaN.
int code_of(const NuqCodebook& book, float y) noexcept;
float level_of(const NuqCodebook& book, int code) noexcept;

}  // namespace kvquant
