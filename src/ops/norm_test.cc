#include "ops/norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace kvquant {
namespace {

TEST(RmsNorm, NormalisesByHand) {
  const std::vector<float> x{3, 4}, weight{1, 2};
  std::vector<float> out(2);
  rms_norm(row_major(x.data(), {1, 2}), weight, 0.0f, row_major(out.data(), {1, 2}));
  const double rms = std::sqrt(12.5);
  EXPECT_NEAR(out[0], 3 / rms, 1e-6);
  EXPECT_NEAR(out[1], 8 / rms, 1e-6);
}

TEST(RmsNorm, FollowsTheDefinitionAtAnyWidth) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (const int64_t width : {1, 3, 15, 16, 17, 63, 64, 65, 100, 576, 1024, 4096}) {
    constexpr int64_t kRows = 3;
    const int64_t stride = width + 3;
    std::vector<float> x(static_cast<size_t>(kRows * stride)), weight(static_cast<size_t>(width));
    for (float& v : x) v = normal(rng) * 10;
    for (float& v : weight) v = normal(rng);
    std::vector<float> out(x.size(), 77.0f);
    rms_norm({x.data(), {kRows, width}, {stride, 1}}, weight, 1e-5f,
             {out.data(), {kRows, width}, {stride, 1}});
    for (int64_t row = 0; row < kRows; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < width; ++i) {
        sum += std::pow(double{x[static_cast<size_t>(row * stride + i)]}, 2);
      }
      const double factor = 1 / std::sqrt(sum / static_cast<double>(width) + double{1e-5f});
      for (int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<size_t>(row * stride + i);
        const double expected = x[at] * factor * weight[static_cast<size_t>(i)];
        EXPECT_NEAR(out[at], expected, 1e-6 * std::abs(expected)) << "width=" << width;
      }
      for (int64_t i = width; i < stride; ++i) {
        EXPECT_EQ(out[static_cast<size_t>(row * stride + i)], 77.0f);
      }
    }
    auto in_place = x;
    rms_norm({in_place.data(), {kRows, width}, {stride, 1}}, weight, 1e-5f,
             {in_place.data(), {kRows, width}, {stride, 1}});
    EXPECT_EQ(in_place[0], out[0]);
    EXPECT_EQ(in_place[static_cast<size_t>(stride + width - 1)],
              out[static_cast<size_t>(stride + width - 1)]);
  }
}

TEST(RmsNorm, KeepsZeroRowsFinite) {
  std::vector<float> x(20), out(20, 1.0f);
  const std::vector<float> weight(20, 1.0f);
  const float* in = x.data();
  rms_norm(row_major(in, {1, 20}), weight, 1e-5f, row_major(out.data(), {1, 20}));
  EXPECT_EQ(out, x);
}

TEST(RmsNorm, RejectsShapesThatDiffer) {
  std::vector<float> x(20), out(20);
  const std::vector<float> weight(10);
  const float* in = x.data();
  const auto run = [&](TensorView<const float, 2> a, TensorView<float, 2> b) {
    rms_norm(a, weight, 1e-5f, b);
  };
  EXPECT_THROW(run(row_major(in, {1, 9}), row_major(out.data(), {1, 9})), std::invalid_argument);
  EXPECT_THROW(run(row_major(in, {2, 10}), row_major(out.data(), {1, 10})), std::invalid_argument);
  EXPECT_THROW(run({in, {2, 5}, {10, 2}}, {out.data(), {2, 5}, {10, 2}}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
