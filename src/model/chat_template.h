// Chat templates, recognised by their text rather than run as Jinja: what a template prints around
// the messages is data, a ChatFormat.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

struct ChatFormat {
  struct Around {
    std::string before, after;
  };
  enum class Bos { kNowhere, kFirst, kEveryUserTurn };
  // Where the system message goes: a turn of its own, or into the first or last user message.
  enum class SystemPlace { kOwnTurn, kFirstUser, kLastUser, kNowhere };

  std::string name;  // of --chat-template; empty: the model has no template
  Bos bos = Bos::kNowhere;
  Around system, user, assistant;
  std::string generation;         // behind the last user message: where the answer begins
  bool eos_after_answer = false;  // behind assistant.after
  std::string after_eos;
  SystemPlace system_place = SystemPlace::kOwnTurn;
  std::string system_preamble;  // kOwnTurn: in every system turn, which is always there then
  std::string default_system;   // message where the first one is not "system"
  bool trims_answers = false;   // white space around the content is taken off
  bool trims_others = false;
  bool drops_thoughts = false;  // of answers: up to "</think>"
};

// Texts that templates call bos_token and eos_token.
struct ChatTokens {
  std::string bos, eos;
};

// What a Jinja text does; a format without name for an empty text. Throws FormatError naming what
// is supported when it is not known.
ChatFormat recognise_chat_template(std::string_view jinja);

// The format that goes by a name. Throws std::invalid_argument listing the names.
ChatFormat chat_format_named(const std::string& name);
std::vector<std::string> chat_format_names();

// The messages as one prompt that ends where the assistant's answer begins; it is encoded without a
// bos of the tokenizer's own, as the template says where that goes. Throws std::invalid_argument
// when the format has no name, or no place for a message of this role.
std::string render_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                        const ChatTokens& tokens);

// What follows an answer when the user goes on: its end, the new message, the next answer's
// beginning. Nothing before is written again: templates that put the system message into the last
// user message or drop earlier thoughts would.
std::string render_next_turn(const ChatFormat& format, const std::string& user,
                             const ChatTokens& tokens);

}  // namespace kvquant
