#include "base/half.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/finite_half.h"

namespace kvquant {
namespace {

TEST(Half, EveryBitPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half h{static_cast<uint16_t>(bits)};
    const float value = to_float(h);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_half(value))));
    } else {
      EXPECT_EQ(to_half(value).bits, bits);
    }
  }
}

TEST(Half, TiesGoToTheEvenNeighbour) {
  EXPECT_EQ(to_half(1.0f + 0x1p-11f).bits, 0x3C00);      // between 1 and 1 + 2^-10
  EXPECT_EQ(to_half(1.0f + 3 * 0x1p-11f).bits, 0x3C02);  // between odd and even: even
  EXPECT_EQ(to_half(0x1p-25f).bits, 0);                  // half the smallest subnormal
  EXPECT_EQ(to_half(3 * 0x1p-25f).bits, 2);
  EXPECT_EQ(to_half(65519.0f).bits, 0x7BFF);
  EXPECT_EQ(to_half(65520.0f).bits, 0x7C00);
  EXPECT_EQ(to_half(-65520.0f).bits, 0xFC00);
}

TEST(FiniteHalf, ConvertsToTheSameBits) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half h{static_cast<uint16_t>(bits)};
    if ((bits & 0x7C00) == 0x7C00) continue;
    EXPECT_EQ(std::bit_cast<uint32_t>(finite_to_float(h)), std::bit_cast<uint32_t>(to_float(h)));
  }
  for (uint32_t bits = 0; bits < 0xFFFFF000u; bits += 997) {  // all exponents, all ways to round
    const float x = std::bit_cast<float>(bits);
    if (!(std::abs(x) < 65520)) continue;
    ASSERT_EQ(finite_to_half(x).bits, to_half(x).bits) << x;
  }
}

TEST(BFloat16, EveryBitPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(BFloat16{static_cast<uint16_t>(bits)});
    if (!std::isnan(value)) {
      EXPECT_EQ(to_bfloat16(value).bits, bits);
    }
  }
  EXPECT_TRUE(std::isnan(round_to_bfloat16(NAN)));
  EXPECT_EQ(to_bfloat16(1.0f + 0x1p-8f).bits, 0x3F80);
  EXPECT_EQ(to_bfloat16(1.0f + 3 * 0x1p-8f).bits, 0x3F82);
}

}  // namespace
}  // namespace kvquant
