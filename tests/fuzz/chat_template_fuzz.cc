// A Jinja text from any bytes: recognised and rendered, or refused.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kvquant/error.h"
#include "model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace kvquant;
  try {
    const ChatFormat format = recognise_chat_template({reinterpret_cast<const char*>(bytes), size});
    if (format.name.empty()) return 0;
    const std::vector<ChatMessage> messages{
        {"user", " Hi"}, {"assistant", "<think>\nx</think>\nHo "}, {"user", "Ha"}};
    render_chat(format, messages, {"<s>", "</s>"});
    render_next_turn(format, "Hu", {"<s>", "</s>"});
  } catch (const FormatError&) {
  }
  return 0;
}
