#include "model/weight_groups.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvquant {
namespace {

constexpr float kSteps = 255;

struct Range {
  Half scale, offset;
};

Range range_of(std::span<const float> weights) {
  const auto is_finite = [](float w) { return std::isfinite(w); };
  const auto [least, largest] = std::minmax_element(weights.begin(), weights.end());
  const Half offset = to_half(*least);
  const Half scale = to_half((*largest - to_float(offset)) / kSteps);
  const bool fits = std::all_of(weights.begin(), weights.end(), is_finite) &&
                    is_finite(to_float(offset)) && is_finite(to_float(scale));
  return fits ? Range{scale, offset}
              : Range{to_half(std::numeric_limits<float>::quiet_NaN()), to_half(0.0f)};
}

}  // namespace

void quantize_to_groups(std::span<const float> row, QuantizedRow out) {
  for (size_t group = 0; group < out.scales.size(); ++group) {
    const auto weights = row.subspan(group * kWeightGroup, kWeightGroup);
    const Range range = range_of(weights);
    const float scale = to_float(range.scale), offset = to_float(range.offset);
    const float steps = scale > 0 ? 1 / scale : 0;  // 0 for NaN, too
    for (size_t i = 0; i < weights.size(); ++i) {
      const float code = steps == 0 ? 0 : std::nearbyint((weights[i] - offset) * steps);
      out.codes[group * kWeightGroup + i] = static_cast<uint8_t>(std::clamp(code, 0.0f, kSteps));
    }
    out.scales[group] = range.scale;
    out.offsets[group] = range.offset;
  }
}

}  // namespace kvquant
