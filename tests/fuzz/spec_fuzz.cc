// Any text is either refused with std::invalid_argument or has a resolved form that parses to
// itself. Seeds: tests/fuzz/seeds/spec.
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kvquant/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  kvquant::CacheSpec spec;
  try {
    spec = kvquant::parse_spec(text);
  } catch (const std::invalid_argument&) {
    return 0;
  }
  const std::string canonical = kvquant::resolved(spec);
  if (canonical.size() > 65536) return 0;
  if (kvquant::resolved(kvquant::parse_spec(canonical)) != canonical) std::abort();
  return 0;
}
