// A model's layers on several devices, one range behind the other.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cuda_device.h"

namespace kvquant {

struct DeviceSplit {
  std::vector<CudaDevice*> devices;
  std::vector<int64_t> ends;  // layers [ends[i - 1], ends[i]) are on devices[i]; ascending

  int64_t num_layers() const { return ends.back(); }
  int64_t first_layer(size_t place) const { return place == 0 ? 0 : ends[place - 1]; }
  size_t place_of(int64_t layer) const {
    size_t place = 0;
    while (layer >= ends[place]) ++place;
    return place;
  }
};

// Bytes of a layer, and of what lies before the first and behind the last one.
struct LayerBytes {
  int64_t layer = 0;
  int64_t before = 0;
  int64_t behind = 0;
};

// As even in bytes as layers allow, at least one on each. Throws std::invalid_argument for more
// devices than layers.
DeviceSplit split_layers(std::vector<CudaDevice*> devices, int64_t num_layers,
                         const LayerBytes& bytes);

}  // namespace kvquant
