// Codebooks and scales as arguments: of one layer, and of all layers in files.
#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <string>
#include <variant>
#include <vector>

#include "arrays.h"
#include "kvquant/codebook.h"

namespace kvquant::python {

// "nuq2", "nuq3", "nuq4", or levels [2^bits].
using CodebookArgument = std::variant<std::string, Array>;

// Its levels. Throws std::invalid_argument for other names.
std::vector<float> levels_of(const CodebookArgument& codebook);

// Scales [num_heads, head_dim]; not given: none, which are units.
LayerScalingFactors scales_of(const char* name, const Array& scales);

}  // namespace kvquant::python
