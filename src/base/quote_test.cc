#include "base/quote.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

TEST(Quote, PrintableTextIsShownAsItIs) {
  EXPECT_EQ(quote(""), "\"\"");
  EXPECT_EQ(quote("blk.0.attn_q.weight"), "\"blk.0.attn_q.weight\"");
}

TEST(Quote, ControlBytesAndQuotesAreEscaped) {
  EXPECT_EQ(quote("a\nb\"\x7f\xff"), "\"a\\x0ab\\x22\\x7f\\xff\"");
  EXPECT_EQ(quote(std::string_view("\0", 1)), "\"\\x00\"");
}

TEST(Quote, LongTextIsClipped) {
  EXPECT_EQ(quote(std::string(64, 'x')), '"' + std::string(64, 'x') + '"');
  EXPECT_EQ(quote(std::string(65, 'x')), '"' + std::string(64, 'x') + "...\"");
}

}  // namespace
}  // namespace kvquant
