#include "quant/key_basis.h"

#include <fmt/format.h>

#include "base/check.h"

namespace kvquant {

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
  return make_value_basis(codec, shape, &rotated_keys);
}

}  // namespace kvquant
