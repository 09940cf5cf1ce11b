// What a tokenizer is made of, whatever file it came from.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvquant {

enum class PreTokenizer {
  kGpt2,                // GPT-2's pattern
  kLlama3,              // Llama 3's pattern: digits in threes
  kLlama3SingleDigits,  // the same, digits one by one (the embedded model)
  kSmolLm,              // digits one by one, then GPT-2's pattern
  // No splitting and no byte alphabet (converted sentencepiece models): tokens are UTF-8 text, a
  // space is U+2581 and one is put in front of every text.
  kMetaspace,
};

struct TokenizerData {
  PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
  std::vector<std::string> tokens;  // id -> text in the byte-level alphabet (special ones: as is)
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<int32_t> special;  // ids of control tokens: matched before splitting, not printed
  std::vector<int32_t> added;    // ids of added tokens that are not special
  int32_t bos = -1;
  int32_t eos = -1;
  bool add_bos = false;        // put bos before a text, as the tokenizer config says
  bool ignore_merges = false;  // a whole word that is a token is taken as it is (Llama 3)
  int32_t unk = -1;            // token of what has none; without one such bytes are left out
  bool fuse_unk = false;       // neighbouring unknowns are one token
  bool byte_fallback = false;  // kMetaspace: a character without a token becomes "<0xNN>" tokens
  // kMetaspace: special and added texts are searched in the normalized text, so with U+2581 in
  // front ("normalized" of tokenizer.json).
  bool match_normalized = false;
  std::string chat_template;  // Jinja text, empty when the file has none
};

}  // namespace kvquant
