// Which published template a Jinja text is. ChatML is compared item by item; the others are long,
// as they format tools as well: of them the parts that print messages are looked for, and what they
// print is taken from the text (spaces around [INST], default system messages).
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <span>
#include <utility>

#include "kvquant/error.h"
#include "model/chat_template.h"
#include "model/chat_template_jinja.h"

namespace kvquant {
namespace {

using Item = JinjaItem;
using Items = std::span<const Item>;

constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>\n";

Item statement(std::string_view text) { return {Item::Kind::kStatement, std::string(text)}; }
Item literal(std::string_view text) { return {Item::Kind::kLiteral, std::string(text)}; }
Item variable(std::string_view text) { return {Item::Kind::kVariable, std::string(text)}; }

bool is_statement(const Item& item) { return item.kind == Item::Kind::kStatement; }
bool is_literal(const Item& item) { return item.kind == Item::Kind::kLiteral; }

// Whether any statement, literal or variable contains the text.
bool mentions(Items items, std::string_view text) {
  return std::any_of(items.begin(), items.end(),
                     [&](const Item& item) { return item.text.find(text) != std::string::npos; });
}

bool mentions_all(Items items, std::initializer_list<std::string_view> texts) {
  return std::all_of(texts.begin(), texts.end(),
                     [&](std::string_view text) { return mentions(items, text); });
}

// Takes `expected` from the front of `items` if it is there.
bool take(Items& items, Items expected) {
  if (items.size() < expected.size()) return false;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (items[i] != expected[i]) return false;
  }
  items = items.subspan(expected.size());
  return true;
}

// The message in "<|im_start|>system\n...<|im_end|>\n".
std::optional<std::string> system_message(const Item& item) {
  const std::string prefix = std::string(kStart) + "system\n";
  std::string_view text = item.text;
  if (item.kind != Item::Kind::kLiteral || !text.starts_with(prefix) || !text.ends_with(kEnd) ||
      text.size() <= prefix.size() + kEnd.size()) {
    return std::nullopt;
  }
  text = text.substr(prefix.size(), text.size() - prefix.size() - kEnd.size());
  if (text.find("<|im_") != std::string_view::npos) return std::nullopt;
  return std::string(text);
}

std::optional<ChatFormat> match_chat_ml(Items items) {
  const std::array no_prompt_by_default{statement("if not add_generation_prompt is defined"),
                                        statement("set add_generation_prompt=false"),
                                        statement("endif")};
  const std::array loop{statement("for message in messages")};
  const std::array if_no_system{statement("if loop.first and messages[0].role!='system'")};
  const std::array end_if{statement("endif")};
  const std::array rest{literal(kStart),
                        variable("message.role"),
                        literal("\n"),
                        variable("message.content"),
                        literal(kEnd),
                        statement("endfor"),
                        statement("if add_generation_prompt"),
                        literal(std::string(kStart) + "assistant\n"),
                        statement("endif")};
  ChatFormat result = chat_format_named("chatml");
  take(items, no_prompt_by_default);
  if (!take(items, loop)) return std::nullopt;
  if (take(items, if_no_system)) {
    if (items.empty()) return std::nullopt;
    const auto message = system_message(items[0]);
    items = items.subspan(1);
    if (!message || !take(items, end_if)) return std::nullopt;
    result.default_system = *message;
  }
  if (!take(items, rest) || !items.empty()) return std::nullopt;
  return result;
}

// What is printed behind the messages: "<|im_start|>assistant\n", and an empty thought only where
// the caller says so.
std::optional<std::string> qwen_generation(Items items) {
  const auto begin = std::find(items.begin(), items.end(), statement("if add_generation_prompt"));
  Items rest = items.subspan(static_cast<size_t>(begin - items.begin()));
  if (rest.size() < 3 || !is_literal(rest[1]) ||
      !rest[1].text.starts_with(std::string(kStart) + "assistant\n")) {
    return std::nullopt;
  }
  const std::string generation = rest[1].text;
  rest = rest.subspan(2);
  const std::array no_thinking{
      statement("if enable_thinking is defined and enable_thinking is false"),
      literal("<think>\n\n</think>\n\n"), statement("endif")};
  take(rest, no_thinking);
  if (rest.size() != 1 || rest[0] != statement("endif")) return std::nullopt;
  return generation;
}

// Qwen2.5 and Qwen3: ChatML with tools.
std::optional<ChatFormat> match_qwen(Items items) {
  if (!mentions_all(items, {"# Tools\n\nYou may call one or more functions", "<tool_call>",
                            "<|im_end|>\n", "messages[0].content"}) ||
      std::find(items.begin(), items.end(), statement("if tools")) == items.end()) {
    return std::nullopt;
  }
  const auto generation = qwen_generation(items);
  if (!generation) return std::nullopt;
  const bool thinks = mentions_all(items, {"</think>", "reasoning_content"});
  ChatFormat result = chat_format_named(thinks ? "qwen3" : "qwen2.5");
  result.generation = *generation;
  result.default_system.clear();
  for (const Item& item : items) {
    if (const auto message = system_message(item)) result.default_system = *message;
  }
  return result;
}

std::optional<ChatFormat> match_llama3(Items items) {
  if (!mentions_all(items, {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "bos_token",
                            "message.content", "<|start_header_id|>assistant<|end_header_id|>"})) {
    return std::nullopt;
  }
  const bool has_date = mentions_all(
      items, {"Cutting Knowledge Date: December 2023\n", "Today Date: ", "26 Jul 2024"});
  // A system turn of another kind.
  if (!has_date && mentions(items, "system<|end_header_id|>")) return std::nullopt;
  ChatFormat result = chat_format_named(has_date ? "llama3.1" : "llama3");
  result.trims_answers = result.trims_others = mentions(items, "message.content|trim");
  return result;
}

// 'set system_message' to a text, where the branch can be reached.
std::optional<std::string> llama2_default_system(Items items) {
  constexpr std::string_view kSet = "set system_message=";
  if (mentions(items, "elif false==true")) return std::nullopt;
  for (const Item& item : items) {
    if (!is_statement(item) || !item.text.starts_with(kSet)) continue;
    if (const auto text = unquote_jinja(std::string_view(item.text).substr(kSet.size()))) {
      return text;
    }
  }
  return std::nullopt;
}

std::optional<ChatFormat> match_llama2(Items items) {
  const std::array user{variable("bos_token"), literal("[INST] "), variable("content.strip()"),
                        literal(" [/INST]")};
  const std::array user_trim{variable("bos_token"), literal("[INST] "), variable("content|trim"),
                             literal(" [/INST]")};
  const std::array answer{literal(" "), variable("content.strip()"), literal(" "),
                          variable("eos_token")};
  const std::array answer_trim{literal(" "), variable("content|trim"), literal(" "),
                               variable("eos_token")};
  const auto has = [&](Items part) {
    return std::search(items.begin(), items.end(), part.begin(), part.end()) != items.end();
  };
  if (!mentions_all(items, {"<<SYS>>", "<</SYS>>"})) return std::nullopt;
  if (!(has(user) || has(user_trim)) || !(has(answer) || has(answer_trim))) return std::nullopt;
  ChatFormat result = chat_format_named("llama2");
  result.default_system = llama2_default_system(items).value_or("");
  return result;
}

// The items from `begin` to the next statement.
Items until_statement(Items items, size_t begin) {
  const Items rest = items.subspan(begin);
  const auto end = std::find_if(rest.begin(), rest.end(), is_statement);
  return rest.first(static_cast<size_t>(end - rest.begin()));
}

// [text] content [text] eos [text] behind "if message.role=='assistant'".
bool read_mistral_answer(Items items, ChatFormat& format) {
  const auto branch = std::find_if(items.begin(), items.end(), [](const Item& item) {
    return is_statement(item) && (item.text == "elif message.role=='assistant'" ||
                                  item.text == "if message.role=='assistant'");
  });
  if (branch == items.end()) return false;
  Items parts = until_statement(items, static_cast<size_t>(branch - items.begin()) + 1);
  const auto take_literal = [&] {
    if (parts.empty() || !is_literal(parts[0])) return std::string();
    const std::string text = parts[0].text;
    parts = parts.subspan(1);
    return text;
  };
  const auto take_variable = [&](std::string_view name) {
    const bool found = !parts.empty() && parts[0] == variable(name);
    if (found) parts = parts.subspan(1);
    return found;
  };
  format.assistant.before = take_literal();
  format.trims_answers = take_variable("message.content|trim");
  if (!format.trims_answers && !take_variable("message.content")) return false;
  format.assistant.after = take_literal();
  if (!take_variable("eos_token")) return false;
  format.after_eos = take_literal();
  return parts.empty();
}

// The place of [INST] system_message "\n\n" content [/INST], from the statement before it.
std::optional<ChatFormat::SystemPlace> mistral_system_place(Items items, const ChatFormat& format) {
  const auto system = std::find(items.begin(), items.end(), variable("system_message"));
  if (system == items.end()) return ChatFormat::SystemPlace::kNowhere;
  const auto at = static_cast<size_t>(system - items.begin());
  const std::array expected{literal(format.user.before), variable("system_message"),
                            literal("\n\n"), variable("message.content"),
                            literal(format.user.after)};
  if (at < 2 || !is_statement(items[at - 2])) return std::nullopt;
  Items rest = items.subspan(at - 1);
  if (!take(rest, expected)) return std::nullopt;
  const std::string& condition = items[at - 2].text;
  if (condition == "if loop.last and system_message is defined") {
    return ChatFormat::SystemPlace::kLastUser;
  }
  if (condition == "if loop.first and system_message is defined" ||
      condition == "if loop.index0==0 and system_message is defined") {
    return ChatFormat::SystemPlace::kFirstUser;
  }
  return std::nullopt;
}

std::optional<ChatFormat> match_mistral(Items items) {
  if (!mentions(items, "[INST]") || mentions(items, "<<SYS>>") ||
      mentions(items, "[SYSTEM_PROMPT]") ||
      std::find(items.begin(), items.end(), variable("bos_token")) == items.end()) {
    return std::nullopt;
  }
  for (size_t i = 1; i + 1 < items.size(); ++i) {
    const std::string& before = items[i - 1].text;
    const std::string& after = items[i + 1].text;
    if (items[i] != variable("message.content") ||
        !(before == "[INST] " || before == " [INST] " || before == "[INST]") ||
        !(after == " [/INST]" || after == "[/INST]")) {
      continue;
    }
    const char* name = after == " [/INST]"  ? "mistral-v1"
                       : before == "[INST]" ? "mistral-v3-tekken"
                                            : "mistral-v3";
    ChatFormat result = chat_format_named(name);
    result.user = {before, after};
    const auto place = mistral_system_place(items, result);
    if (!place || !read_mistral_answer(items, result)) return std::nullopt;
    result.system_place = *place;
    return result;
  }
  return std::nullopt;
}

// The text's beginning in one line.
std::string excerpt(std::string_view jinja) {
  constexpr size_t kMaxBytes = 60;
  std::string text;
  for (const char c : jinja.substr(0, kMaxBytes)) {
    text += c >= 0x20 && c < 0x7F ? c : ' ';
  }
  return jinja.size() > kMaxBytes ? text + "..." : text;
}

}  // namespace

ChatFormat recognise_chat_template(std::string_view jinja) {
  if (jinja.empty()) return {};
  if (const auto items = read_jinja(jinja)) {
    for (const auto match :
         {match_chat_ml, match_qwen, match_llama3, match_llama2, match_mistral}) {
      if (const auto result = match(*items)) return *result;
    }
  }
  std::string names;
  for (const std::string& name : chat_format_names()) names += (names.empty() ? "" : ", ") + name;
  throw FormatError(
      fmt::format("chat template \"{}\" is not known; these are: {} (--chat-template NAME takes "
                  "one of them instead)",
                  excerpt(jinja), names));
}

}  // namespace kvquant
