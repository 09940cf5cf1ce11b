// Byte-level byte-pair tokenizer: text to token ids and back (GPT-2, arXiv 1508.07909 for the
// merges). Pre-tokenizer patterns run through PCRE2. Thread-safe after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer_data.h"

namespace kvquant {

class Tokenizer {
 public:
  // Throws FormatError when the data can't be a tokenizer (a merge of unknown tokens is ignored, as
  // in other engines; two tokens of the same text are not).
  explicit Tokenizer(TokenizerData data);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  enum class Special { kParse, kAsText };  // is "<|im_end|>" in the text a token or ten letters?
  enum class Bos { kAsConfigured, kNever };

  // Throws std::invalid_argument naming the byte offset when the text is not UTF-8.
  std::vector<int32_t> encode(std::string_view text, Special special = Special::kParse,
                              Bos bos = Bos::kAsConfigured) const;

  // Raw bytes of the tokens, special ones left out unless asked for. May end inside a character.
  std::string decode(std::span<const int32_t> ids, bool with_special = false) const;

  int32_t vocab_size() const;
  const TokenizerData& data() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Tokens to text as they come: never returns half a UTF-8 character. Bytes that can't become a
// character are returned as U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  std::string next(int32_t id);  // text that is complete now, may be empty
  std::string finish();          // what was held back

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace kvquant
