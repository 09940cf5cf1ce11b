#include "bench/roofline.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

// Figures depend on the machine; these only say that they are figures.
TEST(Roofline, MeasuresPeaksAndTimesLinearLayersAgainstThem) {
  ThreadPool pool(1);
  const MachinePeaks peaks = measure_peaks(pool);
  EXPECT_EQ(peaks.num_threads, 1);
  EXPECT_GT(peaks.read_gb_per_s, 0);
  EXPECT_LE(peaks.read_median_gb_per_s, peaks.read_gb_per_s);
  EXPECT_GT(peaks.copy_gb_per_s, 0);
  EXPECT_GT(peaks.f32_gemm_gflop_per_s, 0);
  const bool has_bf16 = has_bf16_dots(available_backends().back());
  EXPECT_EQ(peaks.bf16_gemm_gflop_per_s > 0, has_bf16);

  const std::vector<LinearShape> shapes{{"mlp", 704, 256, WeightType::kInt8}};
  const auto timings = time_linear(shapes, peaks, pool);
  ASSERT_EQ(timings.size(), 2u);
  EXPECT_EQ(timings[0].num_rows, 1);
  EXPECT_EQ(timings[1].num_rows, 512);
  for (const LinearTiming& timing : timings) {
    EXPECT_EQ(timing.name, "mlp");
    EXPECT_GT(timing.time_s, 0);
    EXPECT_GE(timing.spread_s, 0);
    EXPECT_EQ(timing.flops, 2.0 * static_cast<double>(timing.num_rows) * 704 * 256);
    EXPECT_GT(timing.share_of_peak, 0);
  }
  EXPECT_EQ(timings[0].bytes, 704 * 256 + 2 * 704 * 256 / 32 * 2 + 256 * 4 + 704 * 4);
}

}  // namespace
}  // namespace kvquant
