// What happens to a text before it is cut into words: Unicode's normal form C, and spaces written
// as U+2581 for sentencepiece models.
#pragma once

#include <string>
#include <string_view>

namespace kvquant {

inline constexpr std::string_view kSpaceMark = "\u2581";

// Normal form C (Unicode of the installed utf8proc). Requires: valid UTF-8.
std::string to_nfc(std::string_view text);

std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// Every space as kSpaceMark.
inline std::string mark_spaces(std::string_view text) { return replace_all(text, " ", kSpaceMark); }

// What sentencepiece models do about spaces.
struct SentencepieceSpaces {
  bool add_prefix = true;     // a kSpaceMark before the text
  bool remove_extra = false;  // at both ends, and all but one elsewhere
};

// A text as sentencepiece's normalizer leaves it where characters are mapped to themselves; an
// empty one stays empty.
std::string sentencepiece_text(std::string_view text, SentencepieceSpaces spaces);

// Bytes of the white space (Unicode's White_Space) that the text begins or ends with. Requires:
// valid UTF-8.
size_t leading_white_space(std::string_view text);
size_t trailing_white_space(std::string_view text);

}  // namespace kvquant
