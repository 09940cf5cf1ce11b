// The kernels between matrix products, run by the CPU and, where there is one, on a GPU, against
// sums in double and the CPU's ops.
#include "ops/cuda_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "ops/cuda_device_test.h"
#include "ops/rope.h"

namespace kvquant {
namespace {

using testing::random_floats;

class CudaRows : public testing::OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CudaRows, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

TEST_P(CudaRows, NormsFollowTheDefinitionInPlaceAndInParts) {
  for (const int64_t width : {1, 8, 31, 64, 100, 128, 129, 576, 4096}) {
    constexpr int64_t kRows = 3, kParts = 2;
    const int64_t stride = kParts * width + 5;
    const auto x = random_floats(kRows * stride, 1), weight = random_floats(width, 2);
    DeviceArray<float> rows(device(), x), weights(device(), weight);
    device().run(CudaNorm{rows.data(), stride, weights.data(), rows.data(), stride, kRows, kParts,
                          width, 1e-5f});
    const auto out = rows.read(rows.size());
    for (int64_t i = 0; i < std::ssize(x); ++i) {
      const int64_t row = i / stride, column = i % stride;
      if (column >= kParts * width) {
        EXPECT_EQ(out[i], x[i]) << "behind a row";
        continue;
      }
      double squares = 0;
      const int64_t first = row * stride + column / width * width;
      for (int64_t c = 0; c < width; ++c) squares += double{x[first + c]} * x[first + c];
      const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + double{1e-5f});
      const double expected = x[i] * factor * weight[column % width];
      ASSERT_NEAR(out[i], expected, 1e-6 * std::fabs(expected) + 1e-12) << "width " << width;
    }
  }
}

TEST_P(CudaRows, RowsAreRotatedByTheTableEachAtItsPosition) {
  constexpr int64_t kRows = 4, kHeads = 3;
  for (const int64_t head_dim : {8, 64, 80, 128, 256}) {
    const RopeTable table(head_dim, 300, 10000);
    const std::vector<int64_t> positions{0, 299, 5, 64};
    const int64_t stride = kHeads * head_dim + 7;
    const auto x = random_floats(kRows * stride, 3);
    auto expected = x;
    for (int64_t row = 0; row < kRows; ++row) {
      rope({.data = expected.data() + row * stride,
            .shape = {1, kHeads, head_dim},
            .stride = {stride, head_dim, 1}},
           positions[row], table);
    }
    const auto size = static_cast<size_t>(300 * head_dim / 2);
    table.cos(299);
    DeviceArray<float> cos(device(), std::span(table.cos(0), size));
    DeviceArray<float> sin(device(), std::span(table.sin(0), size));
    DeviceArray<float> rows(device(), x);
    DeviceArray<int64_t> places(device(), positions);
    device().run(CudaRope{rows.data(), stride, places.data(), cos.data(), sin.data(), kRows, kHeads,
                          head_dim});
    const auto out = rows.read(rows.size());
    for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(out[i], expected[i], 2e-6) << head_dim;
  }
}

TEST_P(CudaRows, GatesAreSiluTimesUpAlsoWhereExpOverflows) {
  constexpr int64_t kRows = 2, kWidth = 300, kStride = 2 * kWidth;
  auto x = random_floats(kRows * kStride, 4);
  x[0] = 100;
  x[1] = -100;
  x[2] = -1000;
  DeviceArray<float> rows(device(), x);
  DeviceArray<float> gated(device(), kRows * kWidth);
  device().run(
      CudaGate{rows.data(), rows.data() + kWidth, kStride, gated.data(), kWidth, kRows, kWidth});
  const auto out = gated.read(gated.size());
  for (int64_t i = 0; i < std::ssize(out); ++i) {
    const int64_t at = i / kWidth * kStride + i % kWidth;
    const double gate = x[at], up = x[at + kWidth];
    const double expected = gate / (1 + std::exp(-gate)) * up;
    ASSERT_NEAR(out[i], expected, 1e-6 * std::fabs(expected) + 1e-30) << i;
  }
}

TEST_P(CudaRows, ABiasHasNoStrideAndAResidualHasOne) {
  constexpr int64_t kRows = 3, kWidth = 200;
  const auto x = random_floats(kRows * kWidth, 5), added = random_floats(kRows * kWidth, 6);
  for (const int64_t stride : {int64_t{0}, kWidth}) {
    DeviceArray<float> rows(device(), x), bias(device(), added);
    device().run(CudaAdd{bias.data(), stride, rows.data(), kWidth, kRows, kWidth});
    const auto out = rows.read(rows.size());
    for (int64_t i = 0; i < std::ssize(x); ++i) {
      ASSERT_EQ(out[i], x[i] + added[i / kWidth * stride + i % kWidth]);
    }
  }
}

TEST_P(CudaRows, EmbeddingsAreRowsOfEitherTable) {
  constexpr int64_t kVocabulary = 50, kWidth = 130;
  const auto table = random_floats(kVocabulary * kWidth, 7);
  std::vector<BFloat16> rounded;
  for (const float x : table) rounded.push_back(to_bfloat16(x));
  const std::vector<int32_t> tokens{49, 0, 7, 7};
  DeviceArray<float> floats(device(), table), out(device(), 4 * kWidth);
  DeviceArray<BFloat16> halves(device(), rounded);
  DeviceArray<int32_t> ids(device(), tokens);
  for (const bool is_bf16 : {false, true}) {
    device().run(CudaEmbed{is_bf16 ? nullptr : floats.data(), is_bf16 ? halves.data() : nullptr,
                           ids.data(), out.data(), 4, kWidth});
    const auto rows = out.read(out.size());
    for (int64_t i = 0; i < std::ssize(rows); ++i) {
      const float x = table[tokens[i / kWidth] * kWidth + i % kWidth];
      ASSERT_EQ(rows[i], is_bf16 ? round_to_bfloat16(x) : x);
    }
  }
}

TEST_P(CudaRows, RowsThatAreNotFiniteAreFound) {
  constexpr int64_t kRows = 6, kWidth = 300;
  auto x = random_floats(kRows * kWidth, 3);
  x[1 * kWidth + 299] = std::numeric_limits<float>::infinity();
  x[2 * kWidth + 0] = -std::numeric_limits<float>::infinity();
  x[4 * kWidth + 130] = std::numeric_limits<float>::quiet_NaN();
  x[5 * kWidth] = std::numeric_limits<float>::max();
  const DeviceArray<float> rows(device(), x);
  const DeviceArray<int32_t> found(device(), kRows);
  device().run(CudaFinite{rows.data(), kWidth, found.data(), kRows, kWidth});
  EXPECT_EQ(found.read(kRows), (std::vector<int32_t>{1, 0, 0, 1, 0, 1}));
}

}  // namespace
}  // namespace kvquant
