#include "cache/device_split.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace kvquant {

DeviceSplit split_layers(std::vector<CudaDevice*> devices, int64_t num_layers,
                         const LayerBytes& bytes) {
  const auto num_devices = std::ssize(devices);
  check_arg(num_devices >= 1 && num_devices <= num_layers,
            fmt::format("{} layers can't be spread over {} devices", num_layers, num_devices));
  const int64_t total = bytes.before + num_layers * bytes.layer + bytes.behind;
  DeviceSplit split{std::move(devices), {}};
  int64_t end = 0;
  for (int64_t i = 0; i + 1 < num_devices; ++i) {
    const int64_t first = end, most = num_layers - (num_devices - 1 - i);
    const auto bytes_to = [&](int64_t layer) { return bytes.before + layer * bytes.layer; };
    const int64_t wanted = total * (i + 1) / num_devices;
    end = std::min(first + 1, most);
    // A layer more while that comes nearer to an even share.
    while (end < most && bytes_to(end) + bytes_to(end + 1) <= 2 * wanted) ++end;
    split.ends.push_back(end);
  }
  split.ends.push_back(num_layers);
  return split;
}

}  // namespace kvquant
