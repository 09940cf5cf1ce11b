// GPT-2's byte alphabet: every byte as one printable character, so that tokens can be written as
// text. Printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up in order:
// a space is U+0120.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvquant {

std::string to_byte_alphabet(std::string_view bytes);

// nullopt when a character is not of the alphabet.
std::optional<std::string> from_byte_alphabet(std::string_view text);

}  // namespace kvquant
