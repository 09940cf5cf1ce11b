#include "model/special_tokens.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "model/text_normalizer.h"

namespace kvquant {
namespace {

SpecialTokens::Match match_of(const SpecialTokens::Token& token, std::string_view text,
                              int64_t from, int64_t offset) {
  const std::string_view before = text.substr(from, offset - from);
  const std::string_view behind = text.substr(offset + token.text.size());
  const auto left = static_cast<int64_t>(token.strip_left ? trailing_white_space(before) : 0);
  const auto right = static_cast<int64_t>(token.strip_right ? leading_white_space(behind) : 0);
  return {offset - left, left + static_cast<int64_t>(token.text.size()) + right, token.id};
}

}  // namespace

SpecialTokens::SpecialTokens(std::vector<Token> tokens) : empty_(tokens.empty()) {
  for (Token& token : tokens) {
    assert(!token.text.empty());
    by_first_byte_[static_cast<unsigned char>(token.text[0])].push_back(std::move(token));
  }
  for (auto& candidates : by_first_byte_) {
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Token& a, const Token& b) { return a.text.size() > b.text.size(); });
  }
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, int64_t from) const {
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t offset = empty_ ? size : from; offset < size; ++offset) {
    const std::string_view rest = text.substr(offset);
    for (const Token& token : by_first_byte_[static_cast<unsigned char>(rest[0])]) {
      if (rest.starts_with(token.text)) return match_of(token, text, from, offset);
    }
  }
  return {size, 0, -1};
}

}  // namespace kvquant
