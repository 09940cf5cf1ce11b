#include "quant/per_layer_keys.h"

#include <algorithm>

#include "kvquant/spec.h"
#include "quant/codec_parameters.h"

namespace kvquant {

PerLayerKeys per_layer_keys(const Calibration& calibration, std::string_view codec) {
  const int bits = get_nuq_bitwidth(codec);
  const double percent = parse_spec(codec).key.outlier_percent;
  const CalibrationShape& shape = calibration.info.shape;
  const int64_t width = shape.num_kv_heads * shape.head_dim;
  const int64_t num_heads =
      calibration.info.codebooks == CodebookScope::kHead ? shape.num_kv_heads : 0;
  PerLayerKeys out;
  for (const LayerCalibration& layer : calibration.layers) {
    const std::vector<float>& books = layer.key.codebooks[static_cast<size_t>(bits - 2)];
    out.codebooks.push_back({.num_heads = num_heads,
                             .num_levels = int64_t{1} << bits,
                             .levels = calibrated_levels(books, percent)});
    const std::vector<Half> ranges = nuq_key_ranges(layer.key, bits, percent);
    std::vector<float> scales(static_cast<size_t>(width));
    std::transform(ranges.begin(), ranges.begin() + width, scales.begin(),
                   [](Half scale) { return to_float(scale); });
    out.scales.push_back({shape.num_kv_heads, shape.head_dim, std::move(scales)});
  }
  return out;
}

}  // namespace kvquant
