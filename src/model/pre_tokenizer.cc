#include "model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <pcre2.h>

#include <limits>
#include <stdexcept>
#include <string>

namespace kvquant {
namespace {

// White_Space of Unicode, for use inside brackets.
constexpr const char* kSpace =
    "\\t-\\r "
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

// GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::string gpt2_pattern() {
  return fmt::format(
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{{L}}+| ?\\p{{N}}+| ?[^{0}\\p{{L}}\\p{{N}}]+"
      "|[{0}]+(?![^{0}])|[{0}]+",
      kSpace);
}

// Digits one by one first and GPT-2's pattern on what lies between: in one pattern, spaces before a
// digit are spaces at the end of a text.
std::string smollm_pattern() {
  return fmt::format(
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{{L}}+|\\p{{N}}| ?[^{0}\\p{{L}}\\p{{N}}]+"
      "|[{0}]+(?![^{0}\\p{{N}}])|[{0}]+",
      kSpace);
}

// Llama 3, `digits` is \p{N}{1,3} there.
std::string llama3_pattern(const char* digits) {
  return fmt::format(
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{1}"
      "| ?[^{0}\\p{{L}}\\p{{N}}]+[\\r\\n]*|[{0}]*[\\r\\n]+|[{0}]+(?![^{0}])|[{0}]+",
      kSpace, digits);
}

std::string pattern_text(PreTokenizer pre_tokenizer) {
  switch (pre_tokenizer) {
    case PreTokenizer::kGpt2: return gpt2_pattern();
    case PreTokenizer::kLlama3: return llama3_pattern("\\p{N}{1,3}");
    case PreTokenizer::kLlama3SingleDigits: return llama3_pattern("\\p{N}");
    case PreTokenizer::kSmolLm: return smollm_pattern();
    case PreTokenizer::kMetaspace: break;
  }
  return "";
}

std::string pcre2_message(int code) {
  unsigned char text[256] = "unknown error";
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

template <auto kFree>
struct FreeWith {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Code = std::unique_ptr<pcre2_code, FreeWith<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, FreeWith<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, FreeWith<pcre2_match_context_free>>;

}  // namespace

struct WordSplitter::Pattern {
  Code code;
  MatchContext context;
};

WordSplitter::WordSplitter(PreTokenizer pre_tokenizer) {
  const std::string text = pattern_text(pre_tokenizer);
  if (text.empty()) return;
  pattern_ = std::make_unique<Pattern>();
  int error = 0;
  size_t offset = 0;
  pattern_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                     PCRE2_UTF | PCRE2_ANCHORED, &error, &offset, nullptr));
  if (!pattern_->code) throw std::runtime_error("pre-tokenizer pattern: " + pcre2_message(error));
  // Without JIT support in the library pcre2_match interprets: slower, same result.
  pcre2_jit_compile(pattern_->code.get(), PCRE2_JIT_COMPLETE);
  pattern_->context.reset(pcre2_match_context_create(nullptr));
  if (!pattern_->context) throw std::bad_alloc();
  // A long run of spaces is walked back once: linear in its length, no reason to give up.
  pcre2_set_match_limit(pattern_->context.get(), std::numeric_limits<uint32_t>::max());
}

WordSplitter::~WordSplitter() = default;
WordSplitter::WordSplitter(WordSplitter&&) noexcept = default;

void WordSplitter::split(std::string_view text,
                         const std::function<void(std::string_view)>& word) const {
  if (!pattern_) {
    if (!text.empty()) word(text);
    return;
  }
  const MatchData match(pcre2_match_data_create(1, nullptr));
  if (!match) throw std::bad_alloc();
  const size_t* range = pcre2_get_ovector_pointer(match.get());
  for (size_t start = 0; start < text.size(); start = range[1]) {
    const int result =
        pcre2_match(pattern_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    start, PCRE2_NO_UTF_CHECK, match.get(), pattern_->context.get());
    if (result < 0) throw std::runtime_error("pre-tokenizer: " + pcre2_message(result));
    if (range[1] <= start) throw std::runtime_error("pre-tokenizer: empty match");
    word(text.substr(start, range[1] - start));
  }
}

}  // namespace kvquant
