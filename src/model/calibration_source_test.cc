#include "model/calibration_source.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace kvquant {
namespace {

std::vector<int32_t> counting(int64_t length) {
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

// Tokens [100, 200) and [300, 400) of counting(500).
CalibrationInfo two_samples() {
  const auto text = counting(500);
  CalibrationInfo info;
  for (const int64_t begin : {100, 300}) {
    info.texts.push_back(
        {"a.txt", begin, begin + 100,
         hash_of_tokens(std::span(text).subspan(static_cast<size_t>(begin), 100))});
  }
  return info;
}

TEST(CalibrationSource, ASampleCountsWhenOneOfItsTokensIsEvaluated) {
  const auto text = counting(500);
  EXPECT_EQ(num_samples_within(two_samples(), text, 0), 0);
  EXPECT_EQ(num_samples_within(two_samples(), text, 100), 0);
  EXPECT_EQ(num_samples_within(two_samples(), text, 101), 1);
  EXPECT_EQ(num_samples_within(two_samples(), text, 300), 1);
  EXPECT_EQ(num_samples_within(two_samples(), text, 301), 2);
  EXPECT_EQ(num_samples_within(two_samples(), text, 500), 2);
}

TEST(CalibrationSource, OtherTokensAtTheSamePlaceAreNoOverlap) {
  auto text = counting(500);
  text[150] = -1;
  EXPECT_EQ(num_samples_within(two_samples(), text, 500), 1);
  text[399] = -1;
  EXPECT_EQ(num_samples_within(two_samples(), text, 500), 0);
}

TEST(CalibrationSource, ATextThatEndsBeforeTheSampleHasNoOverlap) {
  EXPECT_EQ(num_samples_within(two_samples(), counting(400), 400), 2);
  EXPECT_EQ(num_samples_within(two_samples(), counting(399), 399), 1);
  EXPECT_EQ(num_samples_within(two_samples(), counting(150), 150), 0);
  EXPECT_EQ(num_samples_within(two_samples(), {}, 0), 0);
}

TEST(CalibrationSource, RangesThatAreNoneAreNoOverlap) {
  CalibrationInfo info;
  const std::string nothing = hash_of_tokens({});
  info.texts = {{"a", -5, 10, nothing},
                {"a", 10, 10, nothing},
                {"a", 20, 10, nothing},
                {"a", 0, INT64_MAX, nothing}};
  EXPECT_EQ(num_samples_within(info, counting(500), 500), 0);
}

TEST(CalibrationSource, TheFingerprintTellsCalibrationsApart) {
  CalibrationInfo info = two_samples();
  info.model_fingerprint.assign(16, 'f');
  info.recipe.assign(10, 'p');
  EXPECT_EQ(calibration_fingerprint(info), calibration_fingerprint(CalibrationInfo(info)));
  EXPECT_EQ(calibration_fingerprint(info).size(), 16u);
  CalibrationInfo other = info;
  other.recipe.clear();
  EXPECT_NE(calibration_fingerprint(other), calibration_fingerprint(info));
  other = info;
  other.texts.pop_back();
  EXPECT_NE(calibration_fingerprint(other), calibration_fingerprint(info));
  other = info;
  other.model_fingerprint.clear();
  EXPECT_NE(calibration_fingerprint(other), calibration_fingerprint(info));
}

}  // namespace
}  // namespace kvquant
