// Byte-pair tokenizer: text to token ids and back (arXiv 1508.07909 for the merges). Byte-level as
// in GPT-2, or over characters with bytes to fall back on for sentencepiece models
// (PreTokenizer::kMetaspace). Pre-tokenizer patterns run through PCRE2. Thread-safe after
// construction.
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
  // in other engines; two tokens of the same text or ids out of range are not).
  explicit Tokenizer(TokenizerData data);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  enum class Special { kParse, kAsText };  // is "<|im_end|>" in the text a token or ten letters?
  enum class Bos { kAsConfigured, kNever };

  // kAsText concerns data().special only: added tokens are always found. What the vocabulary has no
  // token for (SmolLM2: some control characters) becomes data().unk, or is left out when that is
  // -1. Throws std::invalid_argument naming the byte offset when the text is not UTF-8, FormatError
  // when a model that the sentencepiece library runs contradicts itself.
  std::vector<int32_t> encode(std::string_view text, Special special = Special::kParse,
                              Bos bos = Bos::kAsConfigured) const;

  // Raw bytes of the tokens, special ones left out unless asked for. May end inside a character.
  // kMetaspace: less the space that encode() put in front. Throws std::invalid_argument for an id
  // that is no token.
  std::string decode(std::span<const int32_t> ids, bool with_special = false) const;

  // Raw bytes of one token, also of a special one. Lives as long as the tokenizer. Throws
  // std::invalid_argument for an id that is no token.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;

  int32_t vocab_size() const;
  const TokenizerData& data() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Tokens to text as they come: never returns half a UTF-8 character. Bytes that can't become a
// character are returned as U+FFFD, special tokens as nothing. The text continues a prompt, so a
// space in front of it is kept. Requires: the tokenizer outlives it.
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
