// The tokenizer in a GGUF file's metadata.
#include <cstring>

#include "base/quote.h"
#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"

namespace kvquant {
namespace {

// tokenizer.ggml.token_type
constexpr int64_t kUnknownToken = 2;
constexpr int64_t kControlToken = 3;
constexpr int64_t kUserDefinedToken = 4;

[[noreturn]] void fail(const Gguf& gguf, const std::string& what) {
  throw FormatError(gguf.path() + ": " + what);
}

// Names of tokenizer.ggml.pre as llama.cpp writes them (its src/llama-vocab.cpp).
struct NamedPattern {
  std::string_view name;
  PreTokenizer pre_tokenizer;
};
constexpr NamedPattern kNamedPatterns[] = {
    {"default", PreTokenizer::kGgufDefault},
    {"gpt-2", PreTokenizer::kGpt2},
    {"phi-2", PreTokenizer::kGpt2},
    {"olmo", PreTokenizer::kGpt2},
    {"mpt", PreTokenizer::kGpt2},
    {"llama-bpe", PreTokenizer::kLlama3},
    {"llama3", PreTokenizer::kLlama3},
    {"llama-v3", PreTokenizer::kLlama3},
    {"smaug-bpe", PreTokenizer::kLlama3},
    {"dbrx", PreTokenizer::kLlama3},
    {"qwen2", PreTokenizer::kLlama3SingleDigits},
    {"deepseek-r1-qwen", PreTokenizer::kLlama3SingleDigits},
    {"stablelm2", PreTokenizer::kLlama3SingleDigits},
    {"smollm", PreTokenizer::kSmolLm},
    {"starcoder", PreTokenizer::kSmolLm},
    {"refact", PreTokenizer::kSmolLm},
    {"command-r", PreTokenizer::kSmolLm},
    {"falcon", PreTokenizer::kFalcon},
    {"tekken", PreTokenizer::kTekken},
};

PreTokenizer pre_tokenizer_of(const Gguf& gguf) {
  const auto name = gguf.text("tokenizer.ggml.pre").value_or("default");
  std::string names;
  for (const NamedPattern& known : kNamedPatterns) {
    if (known.name == name) return known.pre_tokenizer;
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  fail(gguf, "tokenizer.ggml.pre " + quote(name) + " is not supported; these are: " + names);
}

// "a b": two tokens; the first may begin with a space, as in other readers.
std::vector<std::pair<std::string, std::string>> merges_of(const Gguf& gguf) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const std::string& text :
       gguf.texts("tokenizer.ggml.merges").value_or(std::vector<std::string>{})) {
    const size_t space = text.find(' ', 1);
    if (space == std::string::npos || space + 1 == text.size()) {
      fail(gguf, "tokenizer.ggml.merges: " + quote(text) + " is not two tokens");
    }
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

// Empty when there are none.
std::vector<float> scores_of(const Gguf& gguf) {
  const auto found = gguf.metadata().find("tokenizer.ggml.scores");
  if (found == gguf.metadata().end()) return {};
  const GgufValue& value = found->second;
  if (!value.is_array || value.type != GgufType::kFloat32) {
    fail(gguf, "tokenizer.ggml.scores is not an array of floats");
  }
  std::vector<float> scores(static_cast<size_t>(value.count));
  if (!scores.empty()) std::memcpy(scores.data(), value.bytes.data(), value.bytes.size());
  return scores;
}

int32_t token_id(const Gguf& gguf, const char* key, const TokenizerData& data, int64_t fallback) {
  const auto num_tokens = static_cast<int64_t>(data.tokens.size());
  const auto named = gguf.integer(key);
  if (!named) return fallback < num_tokens ? static_cast<int32_t>(fallback) : -1;
  if (*named < -1 || *named >= num_tokens) {
    fail(gguf, std::string(key) + " " + std::to_string(*named) + " is not one of " +
                   std::to_string(num_tokens) + " tokens");
  }
  return static_cast<int32_t>(*named);
}

// Byte-level pairs with merges.
void read_byte_level(const Gguf& gguf, TokenizerData& data) {
  data.pre_tokenizer = pre_tokenizer_of(gguf);
  data.merges = merges_of(gguf);
  const auto name = gguf.text("tokenizer.ggml.pre").value_or("default");
  const bool is_llama3 = name == "llama-bpe" || name == "llama3" || name == "llama-v3";
  data.ignore_merges = is_llama3 || name == "tekken";
  data.add_bos = data.ignore_merges;
  data.nfc = name == "qwen2";  // its tokenizer.json says so; GGUF has no field for it
}

// sentencepiece: pairs by the score of what they become.
void read_sentencepiece(const Gguf& gguf, TokenizerData& data) {
  data.pre_tokenizer = PreTokenizer::kMetaspace;
  data.merge_order = MergeOrder::kScores;
  data.scores = scores_of(gguf);
  if (data.scores.size() != data.tokens.size()) {
    fail(gguf, "tokenizer.ggml.scores has " + std::to_string(data.scores.size()) + " entries for " +
                   std::to_string(data.tokens.size()) + " tokens");
  }
  data.fuse_unk = true;
  data.byte_fallback = true;
  data.add_bos = true;
  const bool prefix = gguf.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  data.space_prefix = prefix ? SpacePrefix::kAlways : SpacePrefix::kNever;
  data.space_strip = prefix ? SpaceStrip::kOne : SpaceStrip::kNothing;
  if (gguf.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false)) {
    fail(gguf, "tokenizer.ggml.remove_extra_whitespaces true is not supported");
  }
  data.unk = token_id(gguf, "tokenizer.ggml.unknown_token_id", data, 0);
}

void read_token_types(const Gguf& gguf, TokenizerData& data) {
  const auto types = gguf.integers("tokenizer.ggml.token_type");
  if (types && types->size() != data.tokens.size()) {
    fail(gguf, "tokenizer.ggml.token_type has " + std::to_string(types->size()) + " entries for " +
                   std::to_string(data.tokens.size()) + " tokens");
  }
  for (size_t i = 0; types && i < types->size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if ((*types)[i] == kControlToken || (*types)[i] == kUnknownToken) data.special.push_back(id);
    if ((*types)[i] == kUserDefinedToken) data.added.push_back(id);
  }
}

}  // namespace

TokenizerData tokenizer_data_from_gguf(const Gguf& gguf) {
  const auto model = gguf.text("tokenizer.ggml.model").value_or("");
  if (model != "gpt2" && model != "llama") {
    fail(gguf, "tokenizer.ggml.model " + quote(model) + " is not supported; gpt2 and llama are");
  }
  TokenizerData data;
  auto tokens = gguf.texts("tokenizer.ggml.tokens");
  if (!tokens || tokens->size() > static_cast<size_t>(INT32_MAX)) {
    fail(gguf, "tokenizer.ggml.tokens is missing or too long");
  }
  data.tokens = std::move(*tokens);
  if (model == "gpt2") {
    read_byte_level(gguf, data);
  } else {
    read_sentencepiece(gguf, data);
  }
  read_token_types(gguf, data);
  // sentencepiece's own ids where a file names none.
  data.bos = token_id(gguf, "tokenizer.ggml.bos_token_id", data, model == "llama" ? 1 : -1);
  data.eos = token_id(gguf, "tokenizer.ggml.eos_token_id", data, model == "llama" ? 2 : -1);
  data.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token").value_or(data.add_bos);
  if (data.bos < 0) data.add_bos = false;
  if (gguf.boolean("tokenizer.ggml.add_eos_token").value_or(false)) {
    fail(gguf, "tokenizer.ggml.add_eos_token true is not supported");
  }
  data.chat_template = gguf.text("tokenizer.chat_template").value_or("");
  return data;
}

}  // namespace kvquant
