#include "bench/attend_timing.h"

#include <gtest/gtest.h>

namespace kvquant {
namespace {

// f32: no kernel of bf16 products is needed to read codes.
AttendTimingShape small_shape() {
  AttendTimingShape shape{2, 4, 2, 16, 200, 70, Precision::kF32};
  shape.backend = best_backend();
  shape.num_runs = 3;
  return shape;
}

TEST(AttendTiming, ReportsTimesAndRatesThatBelongTogether) {
  ThreadPool pool(1);
  const auto timings = time_attend(small_shape(), {}, pool);
  ASSERT_EQ(timings.size(), 1u);
  const AttendTiming& timing = timings[0];
  EXPECT_EQ(timing.spec, "fp16");
  EXPECT_EQ(timing.cache_bytes, 2 * 2 * 256 * 16 * 2 * 2);
  EXPECT_GT(timing.decode_ms, 0);
  EXPECT_LE(timing.decode_best_ms, timing.decode_ms);
  EXPECT_EQ(timing.decode_to_fp16, 1);
  EXPECT_EQ(timing.prefill_to_fp16, 1);
  EXPECT_NEAR(timing.decode_gb_per_s * timing.decode_ms * 1e6,
              static_cast<double>(timing.cache_bytes), 1);
  const double flops = 4.0 * 16 * 4 * (70 * 131 + 69 * 70 / 2);  // query i sees 131 + i keys
  EXPECT_NEAR(timing.prefill_gflop_per_s * timing.prefill_ms * 1e6, flops, 1);
}

// Results are compared with the reference inside.
TEST(AttendTiming, TimesEveryKindOfCodesBesideFp16) {
  ThreadPool pool(1);
  std::vector<CacheSpec> specs;
  for (const char* text : {"nuq4",
                           "nuq4-1%",
                           "nuq3",
                           "nuq3-1%",
                           "nuq2",
                           "nuq2-5%",
                           "int8",
                           "int4",
                           "k=nuq4-1%,v=had+nuq4",
                           "k=nuq2,v=nuq3-1%,block=64",
                           "bf16",
                           "fp32",
                           "v=pca16",
                           "v=pca5+int8",
                           "k=bf16,v=pcaw12+nuq3-5%",
                           "k=int8,v=pca12+int4",
                           "k=nuq4-1%,v=lnns",
                           "k=pca16",
                           "k=pca5+int8,v=bf16",
                           "k=pca12+nuq3-5%,v=had+int4",
                           "pca13+int4",
                           "k=lnns,v=pca8+int8",
                           "v=int8",
                           "v=had+nuq4",
                           "k=bf16,v=nuq3-1%"}) {
    specs.push_back(parse_spec(text));
  }
  const auto timings = time_attend(small_shape(), specs, pool);
  ASSERT_EQ(timings.size(), 1 + specs.size());
  for (size_t i = 1; i < timings.size(); ++i) {
    EXPECT_EQ(timings[i].spec, specs[i - 1].text);
    EXPECT_GT(timings[i].decode_ms, 0) << timings[i].spec;
    EXPECT_GT(timings[i].decode_to_fp16, 0) << timings[i].spec;
    EXPECT_GT(timings[i].prefill_to_fp16, 0) << timings[i].spec;
  }
}

// 2 layers of 2 heads, 4 tiles; parameters are fp16, an outlier takes 4 bytes, a tile's start and
// count 6.
TEST(AttendTiming, CountsTheBytesThatAreRead) {
  ThreadPool pool(1);
  const CacheSpec specs[] = {parse_spec("nuq4"), parse_spec("k=nuq4-1%,v=nuq4")};
  AttendTimingShape shape = small_shape();
  shape.chunk = 0;
  const auto timings = time_attend(shape, specs, pool);
  const int64_t codes = 2 * 2 * 4 * 64 * 16 / 2;
  const int64_t key_params = 2 * 2 * 16 * 4, value_params = 2 * 4 * 64 * 4;
  EXPECT_EQ(timings[1].cache_bytes, 2 * codes + key_params + value_params);
  const int64_t lists = 2 * (4 * 2 * 6 + 16);  // each layer's block is padded to 64 bytes
  const int64_t outliers = 2 * 2 * (200 * 16 / 100) * 4;
  EXPECT_EQ(timings[2].cache_bytes, timings[1].cache_bytes + lists + outliers);
  EXPECT_EQ(timings[2].prefill_ms, 0);
}

TEST(AttendTiming, RefusesShapesAndSpecsThatDoNotFit) {
  ThreadPool pool(1);
  const auto refuses = [&](const AttendTimingShape& shape, const char* spec) {
    const CacheSpec parsed = parse_spec(spec);
    EXPECT_THROW(time_attend(shape, {&parsed, 1}, pool), std::invalid_argument) << spec;
  };
  AttendTimingShape shape = small_shape();
  shape.num_heads = 3;
  refuses(shape, "nuq4");
  shape = small_shape();
  shape.chunk = shape.depth + 1;
  refuses(shape, "nuq4");
  shape = small_shape();
  shape.head_dim = 24;
  refuses(shape, "k=nuq4,v=had+nuq4");
  refuses(small_shape(), "k=nuq4,v=fp16");
  refuses(small_shape(), "k=bf16,v=fp16");
  refuses(small_shape(), "k=pcaw8,v=int8");
  refuses(small_shape(), "k=pca17");
  refuses(small_shape(), "v=pca17");
}

}  // namespace
}  // namespace kvquant
