#include "kvquant/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

#include "formats/nuq_codebook.h"

namespace kvquant {
namespace {

TEST(Codebook, LevelsAscendWithinOneAndAreSymmetric) {
  for (const char* name : {"nuq2", "nuq3", "nuq4-1%"}) {
    const auto levels = create_heuristic_codebook(name);
    EXPECT_EQ(static_cast<int>(levels.size()), get_num_levels(name));
    EXPECT_NO_THROW(make_codebook(levels));
    for (size_t i = 0; i < levels.size(); ++i) {
      EXPECT_EQ(levels[i], -levels[levels.size() - 1 - i]);
    }
  }
}

TEST(Codebook, NamesAreChecked) {
  EXPECT_EQ(get_nuq_bitwidth("nuq3"), 3);
  EXPECT_EQ(get_nuq_bitwidth("nuq2-0.5%"), 2);
  for (const char* name : {"nuq5", "int4", "", "nuq3,v=nuq2", "k=nuq3", "fp16"}) {
    EXPECT_THROW(get_nuq_bitwidth(name), std::invalid_argument) << name;
  }
}

TEST(Codebook, BadLevelsAreRefused) {
  EXPECT_THROW(make_codebook(std::vector<float>{0, 0.5f, 1}), std::invalid_argument);
  EXPECT_THROW(make_codebook(std::vector<float>{0, 0.5f, 0.5f, 1}), std::invalid_argument);
  EXPECT_THROW(make_codebook(std::vector<float>{-2, 0.5f, 0.6f, 1}), std::invalid_argument);
  EXPECT_THROW(make_codebook(std::vector<float>{-1, 0, NAN, 1}), std::invalid_argument);
}

// Squared error on standard normal data, its 1% of outliers without error.
double normal_error(const char* name) {
  constexpr double kClip = 2.5758;
  const NuqCodebook book = make_codebook(create_heuristic_codebook(name));
  std::mt19937 rng(1);
  std::normal_distribution<double> normal;
  constexpr int kSamples = 400000;
  double sum = 0;
  for (int i = 0; i < kSamples; ++i) {
    const double x = normal(rng);
    if (std::abs(x) > kClip) continue;
    double best = 1e9;
    for (int l = 0; l < book.num_levels; ++l) {
      best = std::min(best, std::abs(x - kClip * double{book.levels[l]}));
    }
    sum += best * best;
  }
  return sum / kSamples;
}

TEST(Codebook, ErrorOnNormalDataIsWhatTheHeaderSays) {
  EXPECT_NEAR(normal_error("nuq4"), 0.0068, 0.0001);
  EXPECT_NEAR(normal_error("nuq3"), 0.0266, 0.0003);
  EXPECT_NEAR(normal_error("nuq2"), 0.1014, 0.0010);
}

}  // namespace
}  // namespace kvquant
