// tokenizer.model (a sentencepiece model or tiktoken ranks) from any bytes: read and used, by our
// merges or by the sentencepiece library, or refused.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvquant/error.h"
#include "model/tokenizer_json.h"
#include "use_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  try {
    kvquant::use_tokenizer(kvquant::tokenizer_from_model_file(text, "", ""));
  } catch (const kvquant::FormatError&) {
  }
  return 0;
}
