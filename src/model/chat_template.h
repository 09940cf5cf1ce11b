// Chat templates, recognised by their text rather than run as Jinja.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvquant {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

enum class ChatTemplate { kNone, kChatMl };

// The template a Jinja text is. Throws FormatError naming what is supported when it is not known;
// kNone for an empty text.
struct RecognisedTemplate {
  ChatTemplate kind = ChatTemplate::kNone;
  std::string default_system;  // message that the template adds when the first one is not "system"
};
RecognisedTemplate recognise_chat_template(std::string_view jinja);

// The messages as one prompt that ends where the assistant's answer begins. For kNone: throws
// std::invalid_argument (the model has no chat template).
std::string render_chat(const RecognisedTemplate& chat_template,
                        std::span<const ChatMessage> messages);

}  // namespace kvquant
