// tokenizer.json, and behind a zero byte tokenizer_config.json, from any bytes: read, used when it
// can be. Only the documented errors may come out.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvquant/error.h"
#include "model/tokenizer_json.h"
#include "use_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const size_t end = text.find('\0');
  const std::string_view config =
      end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  try {
    kvquant::use_tokenizer(kvquant::tokenizer_from_json(text.substr(0, end), config));
  } catch (const kvquant::FormatError&) {
  }
  return 0;
}
