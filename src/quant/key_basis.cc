#include "quant/key_basis.h"

#include <fmt/format.h>

#include <vector>

#include "base/check.h"

namespace kvquant {

namespace {

// E[(q . a)^2] of the group's queries after RoPE for each component a, their channels taken as
// independent: [H, D]. All alike where there are no queries.
std::vector<float> score_weights(const LayerCalibration& calibration, const BasisShape& shape) {
  const auto& moments = calibration.query.rotated_second_moment;
  const int64_t dim = shape.head_dim, num_heads = shape.num_kv_heads;
  const auto rank = std::ssize(calibration.key.basis) / (num_heads * dim);
  const int64_t group = std::ssize(moments) / (num_heads * dim);
  std::vector<float> weights(static_cast<size_t>(num_heads * dim), moments.empty() ? 1.0f : 0.0f);
  for (int64_t head = 0; head < num_heads; ++head) {
    for (int64_t i = 0; i < rank * group * dim; ++i) {
      const int64_t r = i / (group * dim), q = i / dim % group, c = i % dim;
      const float a = calibration.key.basis[static_cast<size_t>((head * rank + r) * dim + c)];
      weights[static_cast<size_t>(head * dim + r)] +=
          a * a * moments[static_cast<size_t>((head * group + q) * dim + c)];
    }
  }
  return weights;
}

}  // namespace

ValueBasis make_key_basis(const Codec& codec, const BasisShape& shape,
                          const LayerCalibration* calibration) {
  check_arg(
      codec.transforms[0].kind != Transform::kPcaWeighted,
      fmt::format("codec '{}': keys have no weighted components: use pcaR", to_string(codec)));
  if (calibration == nullptr) return make_value_basis(codec, shape, nullptr);
  LayerCalibration rotated_keys;  // in the place of values
  rotated_keys.value.channels.mean = calibration->key.rotated_mean;
  rotated_keys.value.basis = calibration->key.basis;
  rotated_keys.value.gram = calibration->key.gram;  // for wf
  rotated_keys.value.spectrum = calibration->key.spectrum;
  return make_value_basis(codec, shape, &rotated_keys, score_weights(*calibration, shape));
}

}  // namespace kvquant
