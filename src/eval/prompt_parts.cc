#include "eval/prompt_parts.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace kvquant {
namespace {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
bool ends_sentence(char c) { return c == '.' || c == '!' || c == '?'; }
bool closes_quote(char c) { return c == '"' || c == '\'' || c == ')'; }

// Behind the sentence that goes on at `at`: its full stop with closing quotes, or a blank line.
size_t sentence_end(std::string_view text, size_t at) {
  for (; at < text.size(); ++at) {
    if (text[at] == '\n' && at + 1 < text.size() && text[at + 1] == '\n') return at;
    if (!ends_sentence(text[at])) continue;
    size_t end = at + 1;
    while (end < text.size() && (ends_sentence(text[end]) || closes_quote(text[end]))) ++end;
    if (end == text.size() || is_space(text[end])) return end;
  }
  return text.size();
}

}  // namespace

PromptFrame prompt_frame(const Tokenizer& tokenizer, const ChatFormat& format,
                         const ChatTokens& tokens) {
  if (format.name.empty()) return {tokenizer.encode(""), {}};
  const std::string marker = "{message}";
  const ChatMessage message{"user", marker};
  const std::string text = render_chat(format, {&message, 1}, tokens);
  const size_t at = text.rfind(marker);
  check_arg(at != std::string::npos, "chat template " + format.name + " drops the user's message");
  const auto encode = [&](const std::string& part) {
    return part.empty()
               ? std::vector<int32_t>()
               : tokenizer.encode(part, Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
  };
  return {encode(text.substr(0, at)), encode(text.substr(at + marker.size()))};
}

std::vector<int32_t> encode_piece(const Tokenizer& tokenizer, std::string_view text) {
  const TokenizerData& data = tokenizer.data();
  const bool adds_space =
      data.pre_tokenizer == PreTokenizer::kMetaspace && data.space_prefix == SpacePrefix::kAlways;
  if (adds_space && !text.empty() && text[0] == ' ') text.remove_prefix(1);
  return tokenizer.encode(text, Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
}

std::vector<std::string> split_sentences(std::string_view text) {
  std::vector<std::string> out;
  size_t begin = 0;
  while (begin < text.size()) {
    size_t at = begin;
    while (at < text.size() && is_space(text[at])) ++at;
    if (at == text.size()) break;
    const size_t end = sentence_end(text, at);
    out.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

Sentences encode_sentences(const Tokenizer& tokenizer, std::string_view text) {
  Sentences out;
  for (std::string& sentence : split_sentences(text)) {
    if (out.empty() && !is_space(sentence[0])) sentence.insert(0, 1, ' ');  // it will come round
    auto tokens = encode_piece(tokenizer, sentence);
    if (!tokens.empty()) out.push_back(std::move(tokens));
  }
  return out;
}

Filler fill(const Sentences& sentences, size_t first, int64_t max_tokens) {
  check_arg(!sentences.empty(), "the text to fill contexts with has no sentence");
  Filler out;
  out.borders.push_back(0);
  for (size_t i = first;; ++i) {
    const auto& sentence = sentences[i % sentences.size()];
    if (std::ssize(out.tokens) + std::ssize(sentence) > max_tokens) return out;
    out.tokens.insert(out.tokens.end(), sentence.begin(), sentence.end());
    out.borders.push_back(std::ssize(out.tokens));
  }
}

int64_t nearest_border(const Filler& filler, double position) {
  return *std::min_element(filler.borders.begin(), filler.borders.end(), [&](int64_t a, int64_t b) {
    return std::abs(static_cast<double>(a) - position) <
           std::abs(static_cast<double>(b) - position);
  });
}

int64_t num_occurrences(std::span<const int32_t> tokens, std::span<const int32_t> part) {
  int64_t count = 0;
  for (auto at = tokens.begin();; ++at, ++count) {
    at = std::search(at, tokens.end(), part.begin(), part.end());
    if (at == tokens.end()) return count;
  }
}

}  // namespace kvquant
