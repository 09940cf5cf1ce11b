#include "bench/encode_timing.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace kvquant {
namespace {

TEST(EncodeTiming, ReportsTimesAndRatesThatBelongTogether) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  for (const int bits : {2, 3, 4}) {
    const EncodeTimingShape shape{
        .num_kv_heads = 2, .head_dim = 32, .num_tokens = 128, .bits = bits, .num_runs = 2};
    const auto timings = time_encode(shape, pool);
    ASSERT_GE(timings.size(), 6u);
    for (const EncodeTiming& t : timings) {
      EXPECT_EQ(t.bytes, 4 * t.num_values) << t.name;
      EXPECT_GE(t.num_values, 2 * 32 * 128) << t.name;
      EXPECT_LE(t.best_s, t.time_s) << t.name;
      EXPECT_NEAR(t.gvalues_per_s * t.time_s * 1e9, t.num_values, 1) << t.name;
      EXPECT_NEAR(t.gb_per_s, 4 * t.gvalues_per_s, 1e-6 * t.gb_per_s) << t.name;
    }
  }
}

TEST(EncodeTiming, RefusesShapesThatDoNotFit) {
  ThreadPool pool(1);
  EXPECT_THROW(time_encode({.num_tokens = 65}, pool), std::invalid_argument);
  EXPECT_THROW(time_encode({.head_dim = 8}, pool), std::invalid_argument);
  EXPECT_THROW(time_encode({.bits = 8}, pool), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
