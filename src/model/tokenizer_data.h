// What a tokenizer is made of, whatever file it came from.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvquant {

// How a text is cut into words that merges never cross. All but the last are byte-level.
enum class PreTokenizer {
  kGpt2,                // GPT-2's pattern
  kLlama3,              // Llama 3's and GPT-4's pattern: digits in threes
  kLlama3SingleDigits,  // the same, digits one by one (Qwen2, the embedded model)
  kSmolLm,              // digits one by one, then GPT-2's pattern
  kFalcon,              // punctuation, GPT-2's pattern, digits, threes of them
  kGgufDefault,         // what llama.cpp does where a GGUF file names no pattern
  kTekken,              // Mistral Nemo: words by case, digits one by one
  // No byte alphabet (sentencepiece models): tokens are UTF-8 text, a space is U+2581.
  kMetaspace,
};

// kMetaspace: where a U+2581 is put in front.
enum class SpacePrefix {
  kAlways,            // of every text between special tokens (normalizer Prepend, sentencepiece)
  kUnlessThere,       // the same but where the text begins with one (Metaspace "always")
  kFirstUnlessThere,  // and only at the very beginning (Metaspace "first")
  kNever,
};

// kMetaspace: what decode() takes off the front.
enum class SpaceStrip {
  kNothing,
  kOne,              // one space
  kOfTheFirstToken,  // all spaces of the first token that is printed (Metaspace as decoder)
};

// What merges are ordered by.
enum class MergeOrder {
  kRanks,   // `merges`, lowest first
  kScores,  // any two tokens whose texts together are a token, highest of `scores` first
};

struct TokenizerData {
  PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
  std::vector<std::string> tokens;  // id -> text in the byte-level alphabet (special ones: as is)
  MergeOrder merge_order = MergeOrder::kRanks;
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<float> scores;                                // kScores: by id
  std::vector<int32_t> special;  // ids of control tokens: matched before splitting, not printed
  std::vector<int32_t> added;    // ids of added tokens that are not special
  // Of special and added ones: matched in the normalized text, so in what nfc makes of it, and with
  // kAlways with U+2581 in front; and those that swallow the whitespace to the left or right.
  std::vector<int32_t> match_normalized, strip_left, strip_right;
  int32_t bos = -1;
  int32_t eos = -1;
  bool add_bos = false;        // put bos before a text, as the tokenizer config says
  bool nfc = false;            // text is brought to Unicode's normal form C first (Qwen2)
  bool ignore_merges = false;  // a whole word that is a token is taken as it is (Llama 3)
  int32_t unk = -1;            // token of what has none; without one such bytes are left out
  bool fuse_unk = false;       // neighbouring unknowns are one token
  bool byte_fallback = false;  // kMetaspace: a character without a token becomes "<0xNN>" tokens
  SpacePrefix space_prefix = SpacePrefix::kAlways;
  SpaceStrip space_strip = SpaceStrip::kOne;
  bool remove_spaces = false;    // kMetaspace: at both ends, and all but one elsewhere
  bool split_at_spaces = false;  // kMetaspace: a word begins at every U+2581
  // A whole sentencepiece model (tokenizer.model) that its library has to run because our merges
  // don't do what it asks for; else empty.
  std::string sentencepiece;
  std::string chat_template;  // Jinja text, empty when the file has none
};

}  // namespace kvquant
