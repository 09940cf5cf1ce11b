// Calibrations that hold no more than one spec needs, small enough to lie beside a preset: ranges
// of its outlier percent alone, rounding feedback as a triangle of fp16 numbers, bases as fp16 up
// to its rank, no statistics. Caches of other specs refuse them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kvquant/spec.h"
#include "quant/calibration.h"

namespace kvquant {

// Rounds what compact files hold as fp16, so that a compact calibration gives the codes of the
// whole one, bit by bit.
void round_calibration(Calibration& calibration);

// What `spec` needs of a whole calibration; info.holds says so. Bases are cut to its rank. Throws
// std::invalid_argument when it is compact already for another spec, or has bases of a lower rank.
Calibration compact_calibration(const Calibration& calibration, const CacheSpec& spec);

// Throws std::invalid_argument naming both specs when the calibration is compact and lacks what a
// cache of `spec` would read. Whole calibrations have everything.
void check_calibration_holds(const Calibration& calibration, const CacheSpec& spec);

// Whether caches of the spec read anything of a calibration.
bool reads_calibration(const CacheSpec& spec, int64_t num_layers);

// How a field lies in a compact file.
enum class FieldForm {
  kAbsent,
  kWhole,
  kHalf,          // fp16 in place of f32
  kHalfTriangle,  // [..., D, D] below its diagonal, row by row, as fp16: [..., D(D - 1)/2]
  kRows,          // of its outlier percents only those of the spec
};
// Of a field ("key.feedback") of a layer.
FieldForm field_form(const CacheSpec& holds, int layer, std::string_view field);

// Rows of kRows: [first, first + count) of kOutlierPercents.
struct PercentRows {
  int64_t first = 0;
  int64_t count = 1;
};
PercentRows percent_rows(const CacheSpec& holds, int layer);

// The shape of a field in the file, of its shape in memory.
std::vector<int64_t> stored_shape(FieldForm form, PercentRows rows,
                                  const std::vector<int64_t>& shape);

std::vector<Half> pack_halves(const std::vector<float>& values);
std::vector<float> unpack_halves(const std::vector<Half>& halves);
// Below the diagonal of matrices [dim, dim], one after the other, and back with zeros above.
std::vector<Half> pack_triangles(const std::vector<float>& matrices, int64_t dim);
std::vector<float> unpack_triangles(const std::vector<Half>& packed, int64_t dim);

}  // namespace kvquant
