#include "model/chat_template.h"

#include <fmt/core.h>

#include <stdexcept>
#include <utility>

#include "model/text_normalizer.h"

namespace kvquant {
namespace {

using Around = ChatFormat::Around;
using SystemPlace = ChatFormat::SystemPlace;

ChatFormat chat_ml(const std::string& name, const std::string& default_system) {
  ChatFormat format;
  format.name = name;
  const auto turn = [](const std::string& role) {
    return Around{"<|im_start|>" + role + "\n", "<|im_end|>\n"};
  };
  format.system = turn("system");
  format.user = turn("user");
  format.assistant = turn("assistant");
  format.generation = format.assistant.before;
  format.default_system = default_system;
  format.drops_thoughts = name == "qwen3";
  return format;
}

ChatFormat llama2() {
  ChatFormat format;
  format.name = "llama2";
  format.bos = ChatFormat::Bos::kEveryUserTurn;
  format.system = {"<<SYS>>\n", "\n<</SYS>>\n\n"};
  format.user = {"[INST] ", " [/INST]"};
  format.assistant = {" ", " "};
  format.eos_after_answer = true;
  format.system_place = SystemPlace::kFirstUser;
  format.trims_answers = format.trims_others = true;
  return format;
}

ChatFormat llama3(const std::string& name, const std::string& system_preamble) {
  ChatFormat format;
  format.name = name;
  format.bos = ChatFormat::Bos::kFirst;
  const auto turn = [](const std::string& role) {
    return Around{"<|start_header_id|>" + role + "<|end_header_id|>\n\n", "<|eot_id|>"};
  };
  format.system = turn("system");
  format.user = turn("user");
  format.assistant = turn("assistant");
  format.generation = format.assistant.before;
  format.system_preamble = system_preamble;
  format.trims_answers = format.trims_others = true;
  return format;
}

ChatFormat mistral(const std::string& name, Around user, SystemPlace system_place) {
  ChatFormat format;
  format.name = name;
  format.bos = ChatFormat::Bos::kFirst;
  format.system = {"", "\n\n"};
  format.user = std::move(user);
  format.assistant = {name == "mistral-v3-tekken" ? "" : " ", ""};
  format.eos_after_answer = true;
  format.system_place = system_place;
  return format;
}

std::vector<ChatFormat> named_formats() {
  return {
      chat_ml("chatml", ""), llama2(), llama3("llama3", ""),
      // The template asks for today's date; the one it falls back to keeps prompts the same.
      llama3("llama3.1", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"),
      mistral("mistral-v1", {"[INST] ", " [/INST]"}, SystemPlace::kFirstUser),
      mistral("mistral-v3", {"[INST] ", "[/INST]"}, SystemPlace::kLastUser),
      mistral("mistral-v3-tekken", {"[INST]", "[/INST]"}, SystemPlace::kLastUser),
      chat_ml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
      chat_ml("qwen3", "")};
}

std::string trimmed(std::string_view text, bool trims) {
  if (trims) {
    text.remove_prefix(leading_white_space(text));
    text.remove_suffix(trailing_white_space(text));
  }
  return std::string(text);
}

std::string around(const Around& around, const std::string& text) {
  return around.before + text + around.after;
}

std::string end_of_answer(const ChatFormat& format, const ChatTokens& tokens) {
  return format.assistant.after + (format.eos_after_answer ? tokens.eos + format.after_eos : "");
}

std::string user_turn(const ChatFormat& format, const std::string& content,
                      const ChatTokens& tokens) {
  const bool has_bos = format.bos == ChatFormat::Bos::kEveryUserTurn;
  return (has_bos ? tokens.bos : "") + around(format.user, trimmed(content, format.trims_others));
}

std::string without_thoughts(const ChatFormat& format, const std::string& answer) {
  constexpr std::string_view kEnd = "</think>";
  const size_t end = format.drops_thoughts ? answer.rfind(kEnd) : std::string::npos;
  if (end == std::string::npos) return answer;
  const size_t begin = answer.find_first_not_of('\n', end + kEnd.size());
  return begin == std::string::npos ? "" : answer.substr(begin);
}

void check_has_template(const ChatFormat& format) {
  if (!format.name.empty()) return;
  throw std::invalid_argument("chat: the model has no chat template");
}

std::string system_turn(const ChatFormat& format, const std::string& content) {
  return around(format.system, format.system_preamble + trimmed(content, format.trims_others));
}

}  // namespace

std::vector<std::string> chat_format_names() {
  std::vector<std::string> names;
  for (const ChatFormat& format : named_formats()) names.push_back(format.name);
  return names;
}

ChatFormat chat_format_named(const std::string& name) {
  std::string names;
  for (const ChatFormat& format : named_formats()) {
    if (format.name == name) return format;
    names += (names.empty() ? "" : ", ") + format.name;
  }
  throw std::invalid_argument(fmt::format("there is no chat template '{}': {}", name, names));
}

std::string render_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                        const ChatTokens& tokens) {
  check_has_template(format);
  const bool has_system = !messages.empty() && messages[0].role == "system";
  const std::string system = has_system         ? messages[0].content
                             : messages.empty() ? ""
                                                : format.default_system;
  const bool own_turn = format.system_place == SystemPlace::kOwnTurn;
  if (has_system && format.system_place == SystemPlace::kNowhere) {
    throw std::invalid_argument("chat: the model's template has no place for a system message");
  }
  std::string text = format.bos == ChatFormat::Bos::kFirst ? tokens.bos : "";
  if (own_turn && (has_system || !system.empty() || !format.system_preamble.empty())) {
    text += system_turn(format, system);
  }
  if (has_system) messages = messages.subspan(1);
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (role == "user") {
      const bool takes_system =
          (format.system_place == SystemPlace::kFirstUser && i == 0) ||
          (format.system_place == SystemPlace::kLastUser && i + 1 == messages.size());
      const bool with_system = takes_system && (has_system || !system.empty());
      text +=
          user_turn(format, (with_system ? around(format.system, system) : "") + content, tokens);
    } else if (role == "assistant") {
      const std::string answer = without_thoughts(format, content);
      text += format.assistant.before + trimmed(answer, format.trims_answers) +
              end_of_answer(format, tokens);
    } else if (role == "system" && own_turn) {
      text += system_turn(format, content);
    } else {
      throw std::invalid_argument(fmt::format(
          "chat: the template {} has no place here for a message of role '{}'", format.name, role));
    }
  }
  return text + format.generation;
}

std::string render_next_turn(const ChatFormat& format, const std::string& user,
                             const ChatTokens& tokens) {
  check_has_template(format);
  return end_of_answer(format, tokens) + user_turn(format, user, tokens) + format.generation;
}

}  // namespace kvquant
