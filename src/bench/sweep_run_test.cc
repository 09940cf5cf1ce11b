#include "bench/sweep_run.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

SweepLimits few() {
  SweepLimits limits;
  limits.repetitions = {.warmups = 1, .max_repetitions = 2};
  limits.min_repetitions = 2;
  return limits;
}

Json measured(const std::string& name, const SweepLimits& limits,
              const ModelBenchOptions& base = {}) {
  Model model = Model::load(kEmbedded);
  return run_point(model, parse_point_name(name), limits, base);
}

TEST(SweepRun, MeasuresPrefillAndDecodingApart) {
  const Json result = measured("len100_batch2_gen3_nuq4", few());
  EXPECT_EQ(result.at("status"), "ok");
  EXPECT_EQ(result.at("spec"), "nuq4");
  EXPECT_EQ(result.at("n_prompt"), 100);
  EXPECT_EQ(result.at("prefill_samples_s").size(), 2u);
  EXPECT_EQ(result.at("decode_samples_s").size(), 2u);
  const double prefill = result.at("prefill_latency_s"), decode = result.at("decode_latency_s");
  EXPECT_DOUBLE_EQ(result.at("time_to_first_token_s"), prefill);
  EXPECT_DOUBLE_EQ(result.at("decode_step_s"), decode / 3);
  EXPECT_DOUBLE_EQ(result.at("requests_per_s"), 2 / (prefill + decode));
  EXPECT_GE(result.at("peak_cache_bytes"), result.at("cache_bytes"));
  EXPECT_GE(result.at("prefill_peak_rss_bytes"), result.at("loaded_rss_bytes"));
  EXPECT_FALSE(result.contains("energy"));
}

TEST(SweepRun, WithoutGeneratedTokensIsAPrefill) {
  const Json result = measured("len10_batch1_gen0_fp16", few());
  EXPECT_FALSE(result.contains("decode_latency_s"));
  EXPECT_GT(result.at("requests_per_s"), 0.0);
}

TEST(SweepRun, EnergyIsThatOfOneRepetition) {
  EnergyMeter meter({.sources = {"/nonexistent", KVQUANT_FAKE_NVML, 0}, .sample_interval_s = 1e6});
  ModelBenchOptions base;
  base.energy = &meter;
  const Json result = measured("len10_batch2_gen3_fp16", few(), base);
  EXPECT_EQ(result.at("energy"), "measured");
  EXPECT_DOUBLE_EQ(result.at("prefill_joules"), 1.5);
  EXPECT_DOUBLE_EQ(result.at("prefill_joules_per_token"), 1.5 / 20);
  EXPECT_DOUBLE_EQ(result.at("decode_joules_per_token"), 1.5 / 6);
}

TEST(SweepRun, WhatABudgetDoesNotHoldIsOutOfMemory) {
  SweepLimits limits = few();
  limits.memory_budget = 1 << 20;
  const Json result = measured("len1000_batch64_fp16", limits);
  EXPECT_EQ(result.at("status"), "out_of_memory");
  EXPECT_NE(result.at("reason").get<std::string>().find("by forecast"), std::string::npos);
  EXPECT_FALSE(result.contains("prefill_latency_s"));
}

TEST(SweepRun, TheLargestBatchFillsTheBudgetAndOneMoreWouldNotFit) {
  SweepLimits limits = few();
  limits.memory_budget = int64_t{24} << 20;
  int64_t fp16_batch = 0;
  for (const char* name : {"len500_batchmax_gen2_fp16", "len500_batchmax_gen2_nuq3-1%"}) {
    SCOPED_TRACE(name);
    const Json result = measured(name, limits);
    ASSERT_EQ(result.at("status"), "ok");
    const int64_t batch = result.at("batch"), bytes = result.at("cache_bytes");
    EXPECT_LE(bytes, limits.memory_budget);
    EXPECT_GT(bytes / batch * (batch + 1), limits.memory_budget * 9 / 10);
    EXPECT_EQ(result.at("is_largest_batch"), true);
    EXPECT_GT(batch, fp16_batch);
    fp16_batch = batch;
  }
  limits.memory_budget = 1;
  EXPECT_EQ(measured("len500_batchmax_fp16", limits).at("status"), "out_of_memory");
  limits.memory_budget = 0;
  EXPECT_THROW(measured("len500_batchmax_fp16", limits), std::invalid_argument);
}

TEST(SweepRun, WhatDoesNotFitTheModelIsRefused) {
  EXPECT_THROW(measured("len5000_batch1_fp16", few()), std::invalid_argument);
  EXPECT_THROW(measured("len5_batch1_v=pca65", few()), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
