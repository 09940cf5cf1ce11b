#include "model/special_tokens.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace kvquant {

SpecialTokens::SpecialTokens(std::vector<Token> tokens) {
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
  for (int64_t offset = from; offset < size; ++offset) {
    const std::string_view rest = text.substr(offset);
    for (const Token& token : by_first_byte_[static_cast<unsigned char>(rest[0])]) {
      if (rest.starts_with(token.text)) {
        return {offset, static_cast<int64_t>(token.text.size()), token.id};
      }
    }
  }
  return {size, 0, -1};
}

}  // namespace kvquant
