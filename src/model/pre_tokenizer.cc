#include "model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <pcre2.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

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

// Mistral Nemo: a word begins with its capitals and ends with its small letters.
std::string tekken_pattern() {
  return fmt::format(
      "[^\\r\\n\\p{{L}}\\p{{N}}]?[\\p{{Lu}}\\p{{Lt}}\\p{{Lm}}\\p{{Lo}}\\p{{M}}]*"
      "[\\p{{Ll}}\\p{{Lm}}\\p{{Lo}}\\p{{M}}]+"
      "|[^\\r\\n\\p{{L}}\\p{{N}}]?[\\p{{Lu}}\\p{{Lt}}\\p{{Lm}}\\p{{Lo}}\\p{{M}}]+"
      "[\\p{{Ll}}\\p{{Lm}}\\p{{Lo}}\\p{{M}}]*"
      "|\\p{{N}}| ?[^{0}\\p{{L}}\\p{{N}}]+[\\r\\n/]*|[{0}]*[\\r\\n]+|[{0}]+(?![^{0}])|[{0}]+",
      kSpace);
}

struct StageText {
  // kWords: matches follow each other without gaps. kIsolate: what is between matches is a word,
  // too. kIsolateBytes: the same on bytes rather than characters.
  enum class Kind { kWords, kIsolate, kIsolateBytes };
  Kind kind;
  std::string pattern;
};

constexpr const char* kPunctuation = "[\\p{P}$+<=>^~|`]+";
// ASCII digits, and the bytes whose character in the byte alphabet is numeric: falcon's digits are
// looked for behind that alphabet.
constexpr const char* kDigitBytes = "[0-9\\xB2\\xB3\\xB9\\xBC-\\xBE]+";
constexpr const char* kThreeDigits = "[0-9][0-9][0-9]";

std::vector<StageText> stage_texts(PreTokenizer pre_tokenizer) {
  using Kind = StageText::Kind;
  switch (pre_tokenizer) {
    case PreTokenizer::kGpt2: return {{Kind::kWords, gpt2_pattern()}};
    case PreTokenizer::kLlama3: return {{Kind::kWords, llama3_pattern("\\p{N}{1,3}")}};
    case PreTokenizer::kLlama3SingleDigits: return {{Kind::kWords, llama3_pattern("\\p{N}")}};
    case PreTokenizer::kSmolLm: return {{Kind::kWords, smollm_pattern()}};
    case PreTokenizer::kTekken: return {{Kind::kWords, tekken_pattern()}};
    case PreTokenizer::kFalcon:
      return {{Kind::kIsolate, kPunctuation},
              {Kind::kWords, gpt2_pattern()},
              {Kind::kIsolateBytes, kDigitBytes},
              {Kind::kIsolateBytes, kThreeDigits}};
    case PreTokenizer::kGgufDefault:
      return {{Kind::kIsolate, "[\\p{P}$+<=>^~|]+"},
              {Kind::kWords, gpt2_pattern()},
              {Kind::kIsolate, "\\p{N}+"},
              {Kind::kIsolate, kThreeDigits}};
    case PreTokenizer::kMetaspace: break;
  }
  return {};
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

struct WordSplitter::Stage {
  Code code;
  MatchContext context;
  bool keeps_gaps;  // what is between matches is a word

  explicit Stage(const StageText& text) : keeps_gaps(text.kind != StageText::Kind::kWords) {
    const uint32_t options = (text.kind == StageText::Kind::kIsolateBytes ? 0 : PCRE2_UTF) |
                             (keeps_gaps ? 0 : PCRE2_ANCHORED);
    int error = 0;
    size_t offset = 0;
    code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.pattern.data()), text.pattern.size(),
                             options, &error, &offset, nullptr));
    if (!code) throw std::runtime_error("pre-tokenizer pattern: " + pcre2_message(error));
    // Without JIT support in the library pcre2_match interprets: slower, same result.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
    context.reset(pcre2_match_context_create(nullptr));
    if (!context) throw std::bad_alloc();
    // A long run of spaces is walked back once: linear in its length, no reason to give up.
    pcre2_set_match_limit(context.get(), std::numeric_limits<uint32_t>::max());
  }

  // False when nothing matches at `start` or, with gaps, behind it.
  bool match(std::string_view text, size_t start, pcre2_match_data* data) const {
    const int result = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                   text.size(), start, PCRE2_NO_UTF_CHECK, data, context.get());
    if (result == PCRE2_ERROR_NOMATCH && keeps_gaps) return false;
    if (result < 0) throw std::runtime_error("pre-tokenizer: " + pcre2_message(result));
    return true;
  }
};

WordSplitter::WordSplitter(PreTokenizer pre_tokenizer) {
  for (const StageText& text : stage_texts(pre_tokenizer)) stages_.emplace_back(text);
}

WordSplitter::~WordSplitter() = default;
WordSplitter::WordSplitter(WordSplitter&&) noexcept = default;

void WordSplitter::split(std::string_view text,
                         const std::function<void(std::string_view)>& word) const {
  if (!text.empty()) split_from(0, text, word);
}

void WordSplitter::split_from(size_t stage, std::string_view text,
                              const std::function<void(std::string_view)>& word) const {
  if (stage == stages_.size()) {
    word(text);
    return;
  }
  const MatchData match(pcre2_match_data_create(1, nullptr));
  if (!match) throw std::bad_alloc();
  const size_t* range = pcre2_get_ovector_pointer(match.get());
  const bool is_last = stage + 1 == stages_.size();
  const auto pass_on = [&](size_t begin, size_t end) {
    if (begin == end) return;
    if (is_last) {
      word(text.substr(begin, end - begin));
    } else {
      split_from(stage + 1, text.substr(begin, end - begin), word);
    }
  };
  size_t start = 0;
  while (start < text.size() && stages_[stage].match(text, start, match.get())) {
    if (range[1] <= range[0] || range[0] < start) {
      throw std::runtime_error("pre-tokenizer: empty match");
    }
    pass_on(start, range[0]);
    pass_on(range[0], range[1]);
    start = range[1];
  }
  pass_on(start, text.size());
}

}  // namespace kvquant
