#include "model/utf8.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

using Kind = Utf8Sequence::Kind;

void expect_sequence(std::string_view text, Kind kind, int64_t size) {
  const Utf8Sequence sequence = utf8_sequence(text, 0);
  EXPECT_EQ(sequence.kind, kind) << testing::PrintToString(text);
  EXPECT_EQ(sequence.size, size) << testing::PrintToString(text);
}

TEST(Utf8, CharactersOfOneToFourBytesAreFound) {
  expect_sequence("ab", Kind::kCharacter, 1);
  expect_sequence("\xC3\xA9x", Kind::kCharacter, 2);
  expect_sequence("\xE2\x82\xAC", Kind::kCharacter, 3);
  expect_sequence("\xF0\x9F\x98\x80", Kind::kCharacter, 4);
  expect_sequence(std::string_view("\0", 1), Kind::kCharacter, 1);
}

TEST(Utf8, WhatIsNotUtf8IsInvalid) {
  expect_sequence("\x80", Kind::kInvalid, 1);              // no lead byte
  expect_sequence("\xC0\x80", Kind::kInvalid, 1);          // overlong
  expect_sequence("\xE0\x9F\xBF", Kind::kInvalid, 1);      // overlong
  expect_sequence("\xF0\x8F\xBF\xBF", Kind::kInvalid, 1);  // overlong
  expect_sequence("\xED\xA0\x80", Kind::kInvalid, 1);      // surrogate
  expect_sequence("\xF4\x90\x80\x80", Kind::kInvalid, 1);  // above U+10FFFF
  expect_sequence("\xE2\x82X", Kind::kInvalid, 2);         // the longest valid beginning
  expect_sequence("\xFF", Kind::kInvalid, 1);
}

TEST(Utf8, ATextThatEndsInsideACharacterIsIncomplete) {
  expect_sequence("\xC3", Kind::kIncomplete, 1);
  expect_sequence("\xF0\x9F\x98", Kind::kIncomplete, 3);
}

TEST(Utf8, EveryCharacterIsWrittenAndFoundValid) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    const int64_t size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    ASSERT_EQ(static_cast<int64_t>(text.size()), size) << static_cast<uint32_t>(c);
    ASSERT_EQ(find_invalid_utf8(text), -1) << static_cast<uint32_t>(c);
  }
}

TEST(Utf8, TheFirstInvalidByteIsNamedWhereverItLies) {
  EXPECT_EQ(find_invalid_utf8(""), -1);
  for (int64_t offset = 0; offset < 40; ++offset) {
    for (const int64_t rest : {0, 1, 7, 8, 20}) {
      const std::string text = std::string(offset, 'a') + '\xFF' + std::string(rest, 'b');
      EXPECT_EQ(find_invalid_utf8(text), offset);
    }
  }
  EXPECT_EQ(find_invalid_utf8("abc\xE2\x82"), 3);
}

}  // namespace
}  // namespace kvquant
