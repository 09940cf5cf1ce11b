#include "quant/scaling_calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "base/check.h"
#include "formats/codec_table.h"

namespace kvquant {
namespace {

constexpr float kLargestFactor = 65504;  // the largest fp16 number

void check_spec(const CacheSpec& spec, int64_t num_layers) {
  bool has_ranges = false;
  for (int layer = 0; layer < num_layers; ++layer) {
    for (const Codec* codec : {&spec.key_of(layer), &spec.value_of(layer)}) {
      check_arg(!needs_calibration(*codec),
                fmt::format("scaling_factors: {} needs a whole calibration: codec '{}'", spec.text,
                            to_string(*codec)));
    }
    const Codec& key = spec.key_of(layer);
    has_ranges = has_ranges || (is_compressed(key) && !has_latents(key));
  }
  check_arg(has_ranges, fmt::format("scaling_factors: keys of {} have no scales", spec.text));
}

void check_factors(const LayerScalingFactors& given, const CalibrationShape& shape, size_t layer) {
  check_arg(
      given.num_heads == shape.num_kv_heads && given.head_dim == shape.head_dim &&
          std::ssize(given.scales) == shape.num_kv_heads * shape.head_dim,
      fmt::format("scaling_factors of layer {} are [{}, {}], not [num_kv_heads, head_dim] = "
                  "[{}, {}]",
                  layer, given.num_heads, given.head_dim, shape.num_kv_heads, shape.head_dim));
  const auto wrong = std::find_if_not(given.scales.begin(), given.scales.end(), [](float factor) {
    return factor >= 0 && factor <= kLargestFactor;
  });
  if (wrong == given.scales.end()) return;
  const int64_t at = wrong - given.scales.begin();
  throw std::invalid_argument(
      fmt::format("scaling_factors of layer {}: head {}, channel {} is {}, not between 0 and {}",
                  layer, at / given.head_dim, at % given.head_dim, *wrong, kLargestFactor));
}

template <class T>
std::vector<T> repeated(const std::vector<T>& row, int64_t count) {
  std::vector<T> out;
  for (int64_t i = 0; i < count; ++i) out.insert(out.end(), row.begin(), row.end());
  return out;
}

KeyCalibration key_calibration(const std::vector<float>& factors) {
  std::vector<Half> scale, low;
  std::transform(factors.begin(), factors.end(), std::back_inserter(scale), to_half);
  std::transform(scale.begin(), scale.end(), std::back_inserter(low),
                 [](Half x) { return to_half(-to_float(x)); });
  const std::vector<Half> zero(factors.size());
  KeyCalibration key;
  for (size_t i = 0; i < kNumCodebooks; ++i) {
    key.scale[i] = repeated(scale, kNumOutlierPercents);
    key.zero[i] = repeated(zero, kNumOutlierPercents);
    key.low[i] = repeated(low, kNumOutlierPercents);
    key.high[i] = key.scale[i];
  }
  key.uniform_scale = repeated(scale, 2);
  key.uniform_zero = repeated(zero, 2);
  return key;
}

}  // namespace

Calibration scaling_calibration(std::span<const LayerScalingFactors> layers,
                                const CalibrationShape& shape, const CacheSpec& spec) {
  check_arg(std::ssize(layers) == shape.num_layers,
            fmt::format("scaling_factors: {} layers, not the cache's {}", layers.size(),
                        shape.num_layers));
  check_spec(spec, shape.num_layers);
  Calibration out;
  out.info.shape = shape;
  for (size_t i = 0; i < layers.size(); ++i) {
    check_factors(layers[i], shape, i);
    LayerCalibration layer;
    layer.key = key_calibration(layers[i].scales);
    for (size_t width = 0; width < kNumCodebooks; ++width) {
      const auto levels = get_cached_codebook(fmt::format("nuq{}", 2 + width));
      layer.key.codebooks[width] = repeated(levels, kNumOutlierPercents);
      layer.value.codebooks[width] = layer.key.codebooks[width];
      layer.value.hadamard_codebooks[width] = layer.key.codebooks[width];
    }
    out.layers.push_back(std::move(layer));
  }
  return out;
}

}  // namespace kvquant
