#include "cli/chat_prompt.h"

#include <fmt/format.h>

#include <stdexcept>

namespace kvquant::cli {

void add_chat_template_flag(CLI::App& command, std::string& name) {
  command.add_option(
      "--chat-template", name,
      fmt::format("instead of the model's own: {}", fmt::join(chat_format_names(), ", ")));
}

ChatFormat chat_format_of(const std::string& name, Model& model) {
  if (!name.empty()) return chat_format_named(name);
  ChatFormat format = recognise_chat_template(model.checkpoint().tokenizer().chat_template);
  if (format.name.empty()) {
    throw std::invalid_argument(
        fmt::format("{} has no chat template: give --chat-template NAME ({})", model.config().name,
                    fmt::join(chat_format_names(), ", ")));
  }
  return format;
}

ChatTokens chat_tokens(Model& model) {
  const TokenizerData& data = model.checkpoint().tokenizer();
  const auto text = [&](int32_t id) { return id < 0 ? std::string() : data.tokens[id]; };
  return {text(data.bos), text(data.eos)};
}

}  // namespace kvquant::cli
