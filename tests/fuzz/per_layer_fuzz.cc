// Any bytes as a file of codebooks or of scaling factors: parsed, or refused with FormatError. What
// was accepted can be used.
#include <cstdlib>

#include "formats/nuq_codebook.h"
#include "kvquant/error.h"
#include "quant/per_layer_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvquant;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    for (const LayerCodebook& layer : parse_per_layer_codebooks(bytes, "fuzz")) {
      make_codebook(std::span(layer.levels).first(layer.num_levels));
    }
  } catch (const FormatError&) {
  }
  try {
    for (const auto& layer : parse_per_layer_scaling_factors(bytes, "fuzz")) {
      if (static_cast<int64_t>(layer.scales.size()) != layer.num_heads * layer.head_dim) {
        std::abort();
      }
    }
  } catch (const FormatError&) {
  }
  return 0;
}
