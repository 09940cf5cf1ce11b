// Reads Hugging Face's tokenizer.json and tokenizer_config.json. Recognised by content:
//   pre_tokenizer                                                    PreTokenizer
//   ByteLevel                                                        kGpt2
//   Split(a known pattern), ByteLevel without pattern                the pattern's
//   Digits(individual), ByteLevel                                    kSmolLm
//   Punctuation(Contiguous), ByteLevel, Digits, Split(three digits)  kFalcon
//   null, normalizers [Prepend and] Replace of U+2581                kMetaspace
//   Metaspace, any prepend_scheme, with or without split             kMetaspace
// Known patterns are GPT-2's, Llama 3's (GPT-4's), Qwen2's and Mistral Nemo's; a byte-level model
// may have the normalizer NFC. All else (other models, normalizers, patterns, post-processors,
// decoders, single_word of added tokens) is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "model/tokenizer_data.h"

namespace kvquant {

// `tokenizer_config` may be empty; where it says something (bos_token, eos_token, add_bos_token,
// chat_template) it wins. Throws FormatError; messages begin with the file's name without a folder.
TokenizerData tokenizer_from_json(std::string_view tokenizer_json,
                                  std::string_view tokenizer_config = {});

// A sentencepiece model or tiktoken rank file (sentencepiece_model.h, tiktoken_ranks.h) with the
// tokens that tokenizer_config.json's added_tokens_decoder or an added_tokens.json put behind its
// pieces. The JSON texts may be empty.
TokenizerData tokenizer_from_model_file(std::string_view model, std::string_view tokenizer_config,
                                        std::string_view added_tokens);

// tokenizer.json of a folder, or tokenizer.model where that is missing; tokenizer_config.json,
// added_tokens.json (of a tokenizer.model) and chat_template.jinja where there are any.
// Throws IoError, or FormatError naming the path.
TokenizerData load_tokenizer_folder(const std::string& folder);

}  // namespace kvquant
