// The chat template that generate and chat use.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "model/model.h"

namespace kvquant::cli {

// --chat-template NAME.
void add_chat_template_flag(CLI::App& command, std::string& name);

// The format of that name, or when it is empty of the model's own template. Throws
// std::invalid_argument with the names, also when the model has no template.
ChatFormat chat_format_of(const std::string& name, Model& model);

ChatTokens chat_tokens(Model& model);

}  // namespace kvquant::cli
