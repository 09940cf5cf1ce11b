#include "model/byte_alphabet.h"

#include <gtest/gtest.h>

#include <set>

namespace kvquant {
namespace {

TEST(ByteAlphabet, KnownBytesHaveTheirCharacters) {
  EXPECT_EQ(to_byte_alphabet("a b\n"), "a\u0120b\u010A");
  EXPECT_EQ(to_byte_alphabet("\xC3\xA9"), "\u00C3\u00A9");
  EXPECT_EQ(to_byte_alphabet(std::string_view("\0\x7F\xA0\xAD", 4)), "\u0100\u0121\u0142\u0143");
}

TEST(ByteAlphabet, EveryByteHasItsOwnCharacterAndComesBack) {
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string bytes(1, static_cast<char>(byte));
    const std::string text = to_byte_alphabet(bytes);
    EXPECT_TRUE(seen.insert(text).second) << byte;
    EXPECT_EQ(from_byte_alphabet(text), bytes) << byte;
  }
}

TEST(ByteAlphabet, OtherCharactersAreNotOfIt) {
  for (const char* text :
       {" ", "\n", "\u0144", "\u20AC", "\u00AD", "a\U0001F600", "\xC3", "\xC3z"}) {
    EXPECT_EQ(from_byte_alphabet(text), std::nullopt) << text;
  }
  EXPECT_EQ(from_byte_alphabet(""), "");
}

}  // namespace
}  // namespace kvquant
