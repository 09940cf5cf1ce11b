// Reads tiktoken rank files (the tokenizer.model of Llama 3's original release): a line per token,
// its bytes in base64, a space and its rank, which is its id. Two tokens whose bytes together are a
// token merge, lowest rank first. Such files name neither pattern nor special tokens: the pattern
// is Llama 3's, special tokens come from tokenizer_config.json.
#pragma once

#include <string_view>

#include "model/tokenizer_data.h"

namespace kvquant {

// Whether the text begins with a line of such a file.
bool is_tiktoken_ranks(std::string_view text);

// Throws FormatError that begins with "tokenizer.model" and names the line.
TokenizerData tokenizer_from_tiktoken_ranks(std::string_view text);

}  // namespace kvquant
