// UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvquant {

struct Utf8Sequence {
  enum class Kind {
    kCharacter,
    kInvalid,     // `size` bytes that no continuation can make a character
    kIncomplete,  // the text ends inside a character that is valid so far
  };
  Kind kind;
  int64_t size;  // bytes, at least 1
};

// What starts at `offset`. Requires: offset < text.size().
Utf8Sequence utf8_sequence(std::string_view text, int64_t offset);

// Offset of the first byte that belongs to no character, -1 when the text is valid.
int64_t find_invalid_utf8(std::string_view text);

// Requires: a Unicode scalar value.
void append_utf8(std::string& text, char32_t character);

}  // namespace kvquant
