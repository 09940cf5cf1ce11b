// Any bytes as a preset: parsed, or refused with FormatError. What was accepted is written as a
// file that means the same. Seeds: tests/fuzz/seeds/preset.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "kvquant/error.h"
#include "kvquant/preset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvquant;
  const std::string text(reinterpret_cast<const char*>(data), size);
  Preset preset;
  try {
    preset = parse_preset(text, "fuzz");
  } catch (const FormatError&) {
    return 0;
  }
  const std::string written = preset_json(preset);
  if (preset_json(parse_preset(written, "fuzz")) != written) std::abort();
  return 0;
}
