// Reads Hugging Face's tokenizer.json and tokenizer_config.json. Recognised by content:
//   pre_tokenizer                                                    PreTokenizer
//   ByteLevel                                                        kGpt2
//   Split(Llama 3's pattern), ByteLevel without pattern              kLlama3
//   Split(the same with single digits), ByteLevel without pattern    kLlama3SingleDigits
//   Digits(individual), ByteLevel                                    kSmolLm
//   null, normalizers Prepend and Replace of U+2581                  kMetaspace
// All else (other models, normalizers, patterns, post-processors, decoders, flags of added tokens)
// is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "model/tokenizer_data.h"

namespace kvquant {

// `tokenizer_config` may be empty; where it says something (bos_token, eos_token, add_bos_token,
// chat_template) it wins. Throws FormatError; messages begin with the file's name without a folder.
TokenizerData tokenizer_from_json(std::string_view tokenizer_json,
                                  std::string_view tokenizer_config = {});

// tokenizer.json of a folder, tokenizer_config.json and chat_template.jinja where there are any.
// Throws IoError, or FormatError naming the path.
TokenizerData load_tokenizer_folder(const std::string& folder);

}  // namespace kvquant
