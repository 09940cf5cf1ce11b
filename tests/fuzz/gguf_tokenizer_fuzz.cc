// The tokenizer of a GGUF file from any bytes: read and used, or refused.
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"
#include "use_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace kvquant;
  try {
    const Gguf gguf(std::as_bytes(std::span(bytes, size)), "fuzz");
    use_tokenizer(tokenizer_data_from_gguf(gguf));
  } catch (const FormatError&) {
  }
  return 0;
}
