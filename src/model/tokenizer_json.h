// Tokenizers of Hugging Face directories.
#pragma once

#include <string>

#include "model/tokenizer_data.h"

namespace kvquant {

// The tokenizer that tokenizer.json (its text) describes; tokenizer_config.json's text may be
// empty. Throws FormatError with `path`, naming what is not supported.
TokenizerData tokenizer_data_from_json(const std::string& tokenizer_json,
                                       const std::string& tokenizer_config_json,
                                       const std::string& path);

}  // namespace kvquant
