// Any bytes as a safetensors file, as its index and as a config.json: parsed, or refused with
// FormatError. Views of what was accepted are read to the last byte.
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "model/config.h"
#include "model/dequant.h"

namespace {

template <class Read>
void read_or_refuse(const Read& read) {
  try {
    read();
  } catch (const kvquant::FormatError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvquant;
  const std::string text(reinterpret_cast<const char*>(data), size);
  read_or_refuse([&] {
    const Safetensors file = parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz");
    volatile unsigned sum = 0;
    for (const auto& tensor : file.tensors) {
      for (const std::byte b : tensor.data) sum = sum + static_cast<unsigned>(b);
      const WeightFormat* format = find_weight_format(tensor.dtype);
      if (format == nullptr || format->block_size != 1) continue;  // as a checkpoint reads it
      const auto count = static_cast<int64_t>(tensor.data.size()) / format->block_bytes;
      std::vector<float> floats(static_cast<size_t>(count));
      format->to_floats(tensor.data.data(), count, floats.data());
    }
  });
  read_or_refuse([&] { parse_safetensors_index(text, "fuzz"); });
  read_or_refuse([&] { config_from_json(text, "fuzz"); });
  return 0;
}
