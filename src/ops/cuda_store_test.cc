// The kernels of a cache on a device: the bytes that the CPU writes. Blocks, pages and tiles as a
// whole are compared in cache/device_cache_test.cc.
#include "ops/cuda_store.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops/cuda_device_test.h"
#include "ops/encode_cuda.h"
#include "ops/hadamard.h"

namespace kvquant {
namespace {

using testing::random_floats;

class CudaStore : public testing::OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CudaStore, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

TEST_P(CudaStore, RowsAreNarrowedWidenedAndRoundedToNearestEven) {
  constexpr int64_t kRows = 3, kWidth = 200, kStride = 210;
  auto x = random_floats(kRows * kStride, 1);
  x[0] = 65504;
  x[1] = 1 + 0x1p-11f;  // ties
  x[2] = 1 + 3 * 0x1p-11f;
  x[3] = 0x1p-24f;
  x[4] = -0.0f;
  DeviceArray<float> rows(device(), x), back(device(), kRows * kWidth);
  DeviceArray<Half> fresh(device(), kRows * kWidth), halves(device(), kRows * kWidth);
  DeviceArray<BFloat16> bf16(device(), kRows * kWidth);
  std::vector<CudaNarrowTarget> narrowed_to;
  std::vector<CudaMoveTarget> moved_to;
  for (int64_t i = 0; i < kRows; ++i) {
    narrowed_to.push_back({rows.data() + i * kStride, fresh.data() + (kRows - 1 - i) * kWidth});
    moved_to.push_back({narrowed_to.back().to, halves.data() + i * kWidth});
  }
  DeviceArray<CudaNarrowTarget> narrow_targets(device(), narrowed_to);
  DeviceArray<CudaMoveTarget> move_targets(device(), moved_to);
  device().run(CudaNarrow{narrow_targets.data(), kRows, kWidth});
  device().run(CudaMove{move_targets.data(), kRows, kWidth});
  device().run(CudaWiden{halves.data(), back.data(), kRows, kWidth});
  device().run(CudaRound{rows.data(), kStride, bf16.data(), kRows, kWidth});
  const auto narrowed = halves.read(halves.size());
  const auto widened = back.read(back.size());
  const auto rounded = bf16.read(bf16.size());
  for (size_t i = 0; i < narrowed.size(); ++i) {
    const float from = x[i / kWidth * kStride + i % kWidth];
    ASSERT_EQ(narrowed[i], to_half(from)) << from;
    ASSERT_EQ(widened[i], round_to_half(from)) << from;
    ASSERT_EQ(rounded[i], to_bfloat16(from)) << from;
  }
}

TEST_P(CudaStore, RowsAreRotatedAsOnTheCpu) {
  constexpr int64_t kRows = 3, kHeads = 3;
  for (const int64_t head_dim : {8, 64, 128, 256}) {
    auto expected = random_floats(kRows * kHeads * head_dim, 7);
    DeviceArray<float> rows(device(), expected);
    device().run(CudaHadamard{rows.data(), kRows, kHeads, head_dim,
                              1 / std::sqrt(static_cast<float>(head_dim))});
    hadamard_rows(expected.data(), head_dim, kRows * kHeads, head_dim);
    EXPECT_EQ(rows.read(rows.size()), expected) << head_dim;
  }
}

// By the words of quant/ranges.h, one extreme after the other.
struct Fitted {
  Half scale, zero;
  std::vector<uint8_t> marks;
};
Fitted fit_by_hand(std::span<const float> row, int64_t num_outliers) {
  Fitted out{{}, {}, std::vector<uint8_t>(row.size())};
  const auto next = [&](float sign) {
    size_t best = row.size();
    for (size_t i = 0; i < row.size(); ++i) {
      const bool is_free = out.marks[i] == 0;
      if (is_free && (best == row.size() || sign * row[i] > sign * row[best])) best = i;
    }
    return best;
  };
  for (const float sign : {1.0f, -1.0f}) {
    for (int64_t i = 0; i < num_outliers; ++i) out.marks[next(sign)] = 1;
  }
  const float high = row[next(1)], low = row[next(-1)];
  out.scale = to_half(0.5f * (high - low) + 0.0f);
  out.zero = to_half(0.5f * (low + high) + 0.0f);
  return out;
}

TEST_P(CudaStore, ScalesZeroPointsAndMarksOfValuesAreThoseOfTheDefinition) {
  constexpr int64_t kRows = 5;
  for (const int64_t width : {8, 100, 128, 576, 1024}) {
    for (const int64_t num_outliers : {int64_t{0}, int64_t{1}, width / 20}) {
      auto x = random_floats(kRows * width, 2);
      for (int64_t i = 0; i < width; ++i) x[width + i] = std::round(x[width + i]);  // ties
      for (int64_t i = 0; i < width; ++i) x[2 * width + i] = i % 2 == 0 ? 0.0f : -0.0f;
      for (float& value : x) value = round_to_half(value);
      DeviceArray<float> rows(device(), x), scales(device(), kRows), zeros(device(), kRows);
      DeviceArray<uint8_t> marks(device(), kRows * width);
      DeviceArray<Half> stored(device(), 2 * kRows);
      std::vector<CudaFitTarget> to;
      for (int64_t i = 0; i < kRows; ++i)
        to.push_back({rows.data() + i * width, marks.data() + i * width, stored.data() + 2 * i,
                      stored.data() + 2 * i + 1});
      DeviceArray<CudaFitTarget> targets(device(), to);
      device().run(
          CudaFit{targets.data(), scales.data(), zeros.data(), kRows, width, width, num_outliers});
      const auto halves = stored.read(2 * kRows);
      const auto floats = scales.read(kRows), middles = zeros.read(kRows);
      const auto marked = marks.read(kRows * width);
      for (int64_t i = 0; i < kRows; ++i) {
        const auto row = std::span(x).subspan(i * width, width);
        const Fitted expected = fit_by_hand(row, num_outliers);
        ASSERT_EQ(halves[2 * i], expected.scale) << width << " " << num_outliers << " " << i;
        ASSERT_EQ(halves[2 * i + 1], expected.zero);
        ASSERT_EQ(floats[i], to_float(expected.scale));
        ASSERT_EQ(middles[i], to_float(expected.zero));
        for (int64_t c = 0; num_outliers > 0 && c < width; ++c) {
          ASSERT_EQ(marked[i * width + c], expected.marks[c]) << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvquant
