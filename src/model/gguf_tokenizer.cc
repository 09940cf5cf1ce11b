// The tokenizer in a GGUF file's metadata.
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

PreTokenizer pre_tokenizer_of(const Gguf& gguf) {
  const auto name = gguf.text("tokenizer.ggml.pre").value_or("default");
  if (name == "smollm") return PreTokenizer::kSmolLm;
  if (name == "gpt-2" || name == "default") return PreTokenizer::kGpt2;
  if (name == "llama-bpe") return PreTokenizer::kLlama3;
  fail(gguf, "tokenizer.ggml.pre " + quote(name) +
                 " is not supported; smollm, gpt-2, default and llama-bpe are");
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

int32_t token_id(const Gguf& gguf, const char* key, size_t num_tokens) {
  const int64_t id = gguf.integer(key).value_or(-1);
  if (id < -1 || id >= static_cast<int64_t>(num_tokens)) {
    fail(gguf, std::string(key) + " " + std::to_string(id) + " is not one of " +
                   std::to_string(num_tokens) + " tokens");
  }
  return static_cast<int32_t>(id);
}

}  // namespace

TokenizerData tokenizer_data_from_gguf(const Gguf& gguf) {
  const auto model = gguf.text("tokenizer.ggml.model").value_or("");
  if (model != "gpt2") {
    fail(gguf, "tokenizer.ggml.model " + quote(model) + " is not supported; gpt2 is");
  }
  TokenizerData data;
  data.pre_tokenizer = pre_tokenizer_of(gguf);
  auto tokens = gguf.texts("tokenizer.ggml.tokens");
  if (!tokens || tokens->size() > static_cast<size_t>(INT32_MAX)) {
    fail(gguf, "tokenizer.ggml.tokens is missing or too long");
  }
  data.tokens = std::move(*tokens);
  data.merges = merges_of(gguf);
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
  data.bos = token_id(gguf, "tokenizer.ggml.bos_token_id", data.tokens.size());
  data.eos = token_id(gguf, "tokenizer.ggml.eos_token_id", data.tokens.size());
  const bool llama3 = data.pre_tokenizer == PreTokenizer::kLlama3;
  data.ignore_merges = llama3;
  data.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token").value_or(llama3);
  if (data.bos < 0) data.add_bos = false;
  data.chat_template = gguf.text("tokenizer.chat_template").value_or("");
  return data;
}

}  // namespace kvquant
