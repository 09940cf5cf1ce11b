#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "kvquant/codebook.h"

namespace kvquant {
namespace {

// Batch 2, 2 heads, 3 tokens, head_dim 2: x = 100 h + 10 c + token, negative in sequence 1. The
// second sequence has one real token, its last.
class ScalingFactors : public testing::Test {
 protected:
  ScalingFactors() {
    for (int b = 0; b < 2; ++b) {
      for (int h = 0; h < 2; ++h) {
        for (int s = 0; s < 3; ++s) {
          for (int c = 0; c < 2; ++c) {
            const bool is_padding = b == 1 && s < 2;
            const auto x = static_cast<float>((b == 1 ? -1 : 1) * (100 * h + 10 * c + s));
            x_.push_back(is_padding ? NAN : x);
          }
        }
      }
    }
  }
  TensorView<const float, 4> x() const { return row_major<const float>(x_.data(), {2, 2, 3, 2}); }
  TensorView<const uint8_t, 2> mask() const {
    return row_major<const uint8_t>(mask_.data(), {2, 3});
  }

  std::vector<float> x_;
  std::vector<uint8_t> mask_ = {1, 1, 1, 0, 0, 1};
};

TEST_F(ScalingFactors, AreStatisticsOfTheRealTokensByHeadAndChannel) {
  EXPECT_EQ(estimate_scaling_factors(x(), mask()),
            (std::vector<float>{1.25f, 11.25f, 101.25f, 111.25f}));
  EXPECT_EQ(estimate_scaling_factors(x(), mask(), ScaleRule::kMaxAbs),
            (std::vector<float>{2, 12, 102, 112}));
  // Magnitudes 0, 1, 2, 2: the second smallest is the median.
  EXPECT_EQ(estimate_scaling_factors(x(), mask(), ScaleRule::percentile(50)),
            (std::vector<float>{1, 11, 101, 111}));
  EXPECT_EQ(estimate_scaling_factors(x(), mask(), ScaleRule::percentile(51)),
            (std::vector<float>{2, 12, 102, 112}));
  EXPECT_EQ(estimate_scaling_factors(x(), mask(), ScaleRule::percentile(100)),
            estimate_scaling_factors(x(), mask(), ScaleRule::kMaxAbs));
}

TEST_F(ScalingFactors, ValuesThatAreNotFiniteAreNamed) {
  try {
    estimate_scaling_factors(x(), {});
    ADD_FAILURE() << "padding was no padding without a mask";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("x[1, 0, 0, 0]"), std::string::npos) << error.what();
  }
  x_[23] = -INFINITY;  // the last channel of the only real token of sequence 1
  for (const ScaleRule rule : {ScaleRule::kMeanAbs, ScaleRule::percentile(1)}) {
    EXPECT_THROW(estimate_scaling_factors(x(), mask(), rule), std::invalid_argument);
  }
}

TEST_F(ScalingFactors, RulesShapesAndEmptyMasksAreChecked) {
  for (const double percent : {0.0, -1.0, 100.5, std::nan("")}) {
    EXPECT_THROW(estimate_scaling_factors(x(), mask(), ScaleRule::percentile(percent)),
                 std::invalid_argument);
  }
  const auto narrow = row_major<const uint8_t>(mask_.data(), {3, 2});
  EXPECT_THROW(estimate_scaling_factors(x(), narrow), std::invalid_argument);
  mask_.assign(6, 0);
  EXPECT_THROW(estimate_scaling_factors(x(), mask()), std::invalid_argument);
}

TEST(ScalingFactorsOf, ZeroAndConstantChannelsAreDefined) {
  const std::vector<float> x = {0, -3, 0, -3, -0.0f, -3};
  for (const ScaleRule rule :
       {ScaleRule::kMeanAbs, ScaleRule::kMaxAbs, ScaleRule::percentile(99)}) {
    EXPECT_EQ(estimate_scaling_factors(row_major<const float>(x.data(), {1, 1, 3, 2}), {}, rule),
              (std::vector<float>{0, 3}));
  }
}

TEST(ScalingFactorsOf, StridedViewsAreRead) {
  // [batch 1, seq_len 2, num_heads 2, head_dim 1] seen as [batch, num_heads, seq_len, head_dim].
  const std::vector<float> x = {1, 10, 3, 30};
  const TensorView<const float, 4> view{x.data(), {1, 2, 2, 1}, {4, 1, 2, 1}};
  EXPECT_EQ(estimate_scaling_factors(view, {}), (std::vector<float>{2, 20}));
}

}  // namespace
}  // namespace kvquant
