// A calibration's keys in the published per-layer layout (kvquant/codebook.h).
#pragma once

#include <string_view>
#include <vector>

#include "kvquant/codebook.h"
#include "quant/calibration.h"

namespace kvquant {

// Element i belongs to layer i.
struct PerLayerKeys {
  std::vector<LayerCodebook> codebooks;     // one, or one per KV head, as the calibration has
  std::vector<LayerScalingFactors> scales;  // half the range of each channel
};

// What keys of this codec, "nuq3" or "nuq3-1%", are coded with. Throws std::invalid_argument as
// get_nuq_bitwidth does.
PerLayerKeys per_layer_keys(const Calibration& calibration, std::string_view codec);

}  // namespace kvquant
