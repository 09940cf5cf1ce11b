#include "model/text_normalizer.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

TEST(TextNormalizer, NormalFormCComposesOrdersAndReplaces) {
  EXPECT_EQ(to_nfc("plain \u00E9"), "plain \u00E9");
  EXPECT_EQ(to_nfc("e\u0301"), "\u00E9");
  EXPECT_EQ(to_nfc("a\u0301\u0323"), "\u1EA1\u0301");           // by combining class
  EXPECT_EQ(to_nfc("\u212B"), "\u00C5");                        // Angstrom sign: a singleton
  EXPECT_EQ(to_nfc("\u1112\u1161\u11AB"), "\uD55C");            // Hangul
  EXPECT_EQ(to_nfc("\u0958"), "\u0915\u093C");                  // excluded from composition
  EXPECT_EQ(to_nfc("\uFB01 \U0001F600"), "\uFB01 \U0001F600");  // not a compatibility form
  EXPECT_EQ(to_nfc(""), "");
  EXPECT_EQ(to_nfc(std::string_view("\0\u0300", 3)), std::string("\0\u0300", 3));
}

TEST(TextNormalizer, SpacesBecomeMarks) {
  EXPECT_EQ(mark_spaces(" a  b\n"), "\u2581a\u2581\u2581b\n");
  EXPECT_EQ(mark_spaces(""), "");
}

TEST(TextNormalizer, WhiteSpaceIsCountedAtBothEnds) {
  EXPECT_EQ(leading_white_space(" \u3000\n a "), 6u);
  EXPECT_EQ(trailing_white_space(" \u3000a\u0085\t"), 3u);
  EXPECT_EQ(leading_white_space("  "), 2u);
  EXPECT_EQ(trailing_white_space("  "), 2u);
  EXPECT_EQ(leading_white_space("\u200Ba"), 0u);  // no White_Space
  EXPECT_EQ(trailing_white_space(""), 0u);
}

}  // namespace
}  // namespace kvquant
