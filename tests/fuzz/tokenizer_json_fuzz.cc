// tokenizer.json, and behind a zero byte tokenizer_config.json, from any bytes: read, used when it
// can be, and its chat template recognised. Only the documented errors may come out.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "kvquant/error.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/tokenizer_json.h"

namespace {

void use(const kvquant::TokenizerData& data) {
  const kvquant::Tokenizer tokenizer(data);
  const auto ids = tokenizer.encode("ab <s>a  b 12\u00E9\n<tool>");
  tokenizer.decode(ids, true);
  kvquant::StreamDecoder stream(tokenizer);
  for (const int32_t id : ids) stream.next(id);
  stream.finish();
  kvquant::recognise_chat_template(data.chat_template);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const size_t end = text.find('\0');
  const std::string_view config =
      end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  try {
    use(kvquant::tokenizer_from_json(text.substr(0, end), config));
  } catch (const kvquant::FormatError&) {
  }
  return 0;
}
