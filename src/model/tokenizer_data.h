// What a tokenizer is made of, whatever file it came from.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvquant {

enum class PreTokenizer {
  kGpt2,    // GPT-2's pattern
  kLlama3,  // Llama 3's pattern: digits in threes
  kLlama3SingleDigits,  // the same, digits one by one (the embedded model)
  kSmolLm,  // digits one by one, then GPT-2's pattern
};

struct TokenizerData {
  PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
  std::vector<std::string> tokens;  // id -> text in the byte-level alphabet (special ones: as is)
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<int32_t> special;  // ids of control tokens: matched before splitting, not printed
  std::vector<int32_t> added;    // ids of added tokens that are not special
  int32_t bos = -1;
  int32_t eos = -1;
  bool add_bos = false;  // put bos before a text, as the tokenizer config says
  bool ignore_merges = false;  // a whole word that is a token is taken as it is (Llama 3)
  std::string chat_template;  // Jinja text, empty when the file has none
};

}  // namespace kvquant
