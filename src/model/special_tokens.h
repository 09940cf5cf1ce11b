// Finds the tokens that are matched before a text is split ("<|im_end|>"): leftmost first, of
// several at the same place the longest.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

// Thread-safe after construction.
class SpecialTokens {
 public:
  struct Token {
    std::string text;  // not empty
    int32_t id = -1;
    bool strip_left = false;  // white space on that side belongs to the match
    bool strip_right = false;
  };
  struct Match {
    int64_t offset = 0;  // of the text's end when there is none
    int64_t size = 0;    // bytes
    int32_t id = -1;     // -1: none
  };

  explicit SpecialTokens(std::vector<Token> tokens);

  // The first match at `from` or later. Requires: valid UTF-8.
  Match find(std::string_view text, int64_t from) const;
  bool empty() const { return empty_; }

 private:
  std::array<std::vector<Token>, 256> by_first_byte_;  // longest first
  bool empty_;
};

}  // namespace kvquant
