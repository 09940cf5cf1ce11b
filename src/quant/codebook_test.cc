#include "kvquant/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <thread>

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

TEST(Codebook, TheCachedOneIsTheHeuristicOneFromAnyThread) {
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> books(8);
  for (size_t i = 0; i < books.size(); ++i) {
    threads.emplace_back([&books, i] { books[i] = get_cached_codebook("nuq3-1%"); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& book : books) EXPECT_EQ(book, create_heuristic_codebook("nuq3"));
  for (const char* name : {"nuq2", "nuq4"}) {
    EXPECT_EQ(get_cached_codebook(name), create_heuristic_codebook(name));
  }
  EXPECT_THROW(get_cached_codebook("int8"), std::invalid_argument);
}

TEST(Quantize, TakesTheNearestLevelWithTiesToTheLowerIndex) {
  const std::vector<float> levels = {-1, -0.5f, 0, 1};
  const std::vector<float> x = {-9, -0.75f, -0.74f, -0.25f, 0, 0.5f, 0.51f, 1, 77};
  std::vector<uint8_t> codes(x.size());
  quantize_to_nuq(x, levels, codes);
  EXPECT_EQ(codes, (std::vector<uint8_t>{0, 0, 1, 1, 2, 2, 3, 3, 3}));
  std::vector<float> out(x.size());
  dequantize_from_nuq(codes, levels, out);
  EXPECT_EQ(out, (std::vector<float>{-1, -1, -0.5f, -0.5f, 0, 0, 1, 1, 1}));
}

TEST(Quantize, LevelsComeBackAsThemselves) {
  for (const char* name : {"nuq2", "nuq3", "nuq4"}) {
    const auto levels = create_heuristic_codebook(name);
    std::vector<uint8_t> codes(levels.size());
    quantize_to_nuq(levels, levels, codes);
    for (size_t i = 0; i < codes.size(); ++i) EXPECT_EQ(codes[i], i);
    quantize_to_nuq({}, levels, {});
  }
}

TEST(Quantize, RefusesOtherSizesBadNumbersAndBadCodes) {
  const auto levels = create_heuristic_codebook("nuq2");
  std::vector<uint8_t> codes(2, 0);
  std::vector<float> out(2);
  EXPECT_THROW(quantize_to_nuq(std::vector<float>(3), levels, codes), std::invalid_argument);
  EXPECT_THROW(quantize_to_nuq(std::vector<float>{0, NAN}, levels, codes), std::invalid_argument);
  EXPECT_THROW(quantize_to_nuq(std::vector<float>{-INFINITY, 0}, levels, codes),
               std::invalid_argument);
  EXPECT_THROW(quantize_to_nuq(out, std::vector<float>{1, 0, 2, 3}, codes), std::invalid_argument);
  codes[1] = 4;
  EXPECT_THROW(dequantize_from_nuq(codes, levels, out), std::invalid_argument);
  EXPECT_THROW(dequantize_from_nuq(std::vector<uint8_t>(1), levels, out), std::invalid_argument);
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
