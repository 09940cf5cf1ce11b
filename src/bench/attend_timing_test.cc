#include "bench/attend_timing.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

TEST(AttendTiming, ReportsTimesAndRatesThatBelongTogether) {
  ThreadPool pool(1);
  AttendTimingShape shape{2, 4, 2, 16, 200, 70, DenseType::kF16};
  shape.backend = best_backend();
  shape.num_runs = 3;
  const AttendTiming timing = time_attend(shape, pool);
  EXPECT_EQ(timing.cache_bytes, 2 * 2 * 256 * 16 * 2 * 2);
  EXPECT_GT(timing.decode_ms, 0);
  EXPECT_LE(timing.decode_best_ms, timing.decode_ms);
  EXPECT_NEAR(timing.decode_gb_per_s * timing.decode_ms * 1e6,
              static_cast<double>(timing.cache_bytes), 1);
  const double flops = 4.0 * 16 * 4 * (70 * 131 + 69 * 70 / 2);  // query i sees 131 + i keys
  EXPECT_NEAR(timing.prefill_gflop_per_s * timing.prefill_ms * 1e6, flops, 1);
}

TEST(AttendTiming, RefusesShapesThatDoNotFit) {
  ThreadPool pool(1);
  AttendTimingShape shape;
  shape.num_heads = 3;
  shape.num_kv_heads = 2;
  EXPECT_THROW(time_attend(shape, pool), std::invalid_argument);
  shape = {};
  shape.chunk = shape.depth + 1;
  EXPECT_THROW(time_attend(shape, pool), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
