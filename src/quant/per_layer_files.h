// The bytes of the files that load_per_layer_* of kvquant/codebook.h read.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kvquant/codebook.h"

namespace kvquant {

// Throw FormatError naming `path`, as kvquant/codebook.h says.
std::vector<LayerCodebook> parse_per_layer_codebooks(std::span<const std::byte> bytes,
                                                     const std::string& path);
std::vector<LayerScalingFactors> parse_per_layer_scaling_factors(std::span<const std::byte> bytes,
                                                                 const std::string& path);

}  // namespace kvquant
