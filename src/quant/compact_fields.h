// How the arrays of a calibration lie in its file: whole ones as in memory, those of compact ones
// in the forms of compact_calibration.h. Part of calibration.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "quant/compact_calibration.h"

namespace kvquant {

// In a whole file everything is as in memory.
class FieldForms {
 public:
  explicit FieldForms(const CalibrationInfo& info) {
    if (!info.holds.empty()) holds_ = parse_spec(info.holds);
  }
  FieldForm of(size_t layer, const std::string& field) const {
    return holds_ ? field_form(*holds_, static_cast<int>(layer), field) : FieldForm::kWhole;
  }
  PercentRows rows(size_t layer) const {
    return holds_ ? percent_rows(*holds_, static_cast<int>(layer)) : PercentRows{};
  }

 private:
  std::optional<CacheSpec> holds_;
};

// What is made for the file is kept in `packed`.
template <class T>
std::span<const std::byte> stored_bytes(FieldForm form, PercentRows rows,
                                        const std::vector<int64_t>& shape,
                                        const std::vector<T>& array,
                                        std::deque<std::vector<Half>>& packed) {
  if (form == FieldForm::kRows) {
    const auto width = static_cast<size_t>(static_cast<int64_t>(array.size()) / shape[0]);
    return std::as_bytes(std::span(array).subspan(static_cast<size_t>(rows.first) * width,
                                                  static_cast<size_t>(rows.count) * width));
  }
  if constexpr (std::is_same_v<T, float>) {
    if (form == FieldForm::kHalfTriangle) packed.push_back(pack_triangles(array, shape.back()));
    if (form == FieldForm::kHalf) packed.push_back(pack_halves(array));
    if (form != FieldForm::kWhole) return std::as_bytes(std::span(packed.back()));
  }
  return std::as_bytes(std::span(array));
}

}  // namespace kvquant
