#include "formats/nuq_codebook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace kvquant {
namespace {

TEST(UniformCodebook, FourBitsAreSixteenLevelsOfATable) {
  const NuqCodebook book = make_uniform_codebook(4);
  EXPECT_EQ(book.bits, 4);
  EXPECT_EQ(book.num_levels, 16);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(book.levels[i], static_cast<float>(2 * i - 15) / 15);
  EXPECT_EQ(code_of(book, -1), 0);
  EXPECT_EQ(code_of(book, 1), 15);
  EXPECT_EQ(code_of(book, 0), 7);  // a tie goes to the lower index
  EXPECT_EQ(level_of(book, 15), 1.0f);
}

TEST(UniformCodebook, EightBitsByHand) {
  const NuqCodebook book = make_uniform_codebook(8);
  EXPECT_EQ(book.num_levels, 256);
  EXPECT_EQ(code_of(book, 0), 127);  // a tie of -1/255 and 1/255
  EXPECT_EQ(code_of(book, -1), 0);
  EXPECT_EQ(code_of(book, 1), 255);
  EXPECT_EQ(code_of(book, -1e30f), 0);
  EXPECT_EQ(code_of(book, 1e30f), 255);
  EXPECT_NEAR(level_of(book, 0), -1, 1e-7);
  EXPECT_NEAR(level_of(book, 128), 1 / 255.0, 1e-9);
}

TEST(UniformCodebook, EveryLevelIsItsOwnCodeAndItsNeighboursAreFurther) {
  const NuqCodebook book = make_uniform_codebook(8);
  for (int code = 0; code < 256; ++code) EXPECT_EQ(code_of(book, level_of(book, code)), code);
  for (int i = -1200; i <= 1200; ++i) {
    const float y = static_cast<float>(i) * 0.00091f;
    const int code = code_of(book, y);
    const double error = std::abs(double{level_of(book, code)} - y);
    if (code > 0) {
      EXPECT_LT(error, std::abs(double{level_of(book, code - 1)} - y) + 1e-7);
    }
    if (code < 255) {
      EXPECT_LT(error, std::abs(double{level_of(book, code + 1)} - y) + 1e-7);
    }
  }
}

TEST(UniformCodebook, NoiseIsATwelfthOfTheSquaredStep) {
  EXPECT_NEAR(make_uniform_codebook(2).levels[2], 1.0 / 3, 1e-7);
  EXPECT_NEAR(make_uniform_codebook(4).noise, 4.0 / (15 * 15) / 12, 1e-8);
  EXPECT_NEAR(make_uniform_codebook(8).noise, 4.0 / (255.0 * 255) / 12, 1e-11);
}

TEST(Codebook, NoiseIsThatOfANormalDistributionRounded) {
  const float levels[] = {-0.9f, -0.5f, -0.3f, -0.1f, 0.15f, 0.3f, 0.45f, 1.0f};
  const NuqCodebook book = make_codebook(levels);
  double sum = 0, weights = 0;
  for (int i = -10000; i <= 10000; ++i) {
    const float y = static_cast<float>(i) / 10000;
    const double error = y - level_of(book, code_of(book, y));
    const double weight = std::exp(-0.5 * (2.5 * y) * (2.5 * y));
    sum += weight * error * error;
    weights += weight;
  }
  EXPECT_NEAR(book.noise, sum / weights, 0.15 * book.noise);  // cells count as uniform
}

TEST(UniformCodebook, RefusesOtherWidths) {
  EXPECT_THROW(make_uniform_codebook(3), std::invalid_argument);
  EXPECT_THROW(make_uniform_codebook(0), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
