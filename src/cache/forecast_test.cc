#include "cache/forecast.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace kvquant {
namespace {

// Appends num_tokens of normal data, in chunks of up to 512 and the last ones token by token.
void fill(KvCache& cache, KvCache::SequenceId id, int64_t num_tokens, uint32_t seed) {
  const KvShape& shape = cache.shape();
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (int64_t begin = 0; begin < num_tokens;) {
    const int64_t left = num_tokens - begin;
    const int64_t size = left > 16 ? std::min<int64_t>(512, left - 16) : 1;
    std::vector<float> x(static_cast<size_t>(size * shape.num_kv_heads * shape.head_dim));
    for (float& v : x) v = normal(rng);
    const auto chunk =
        row_major<const float, 3>(x.data(), {size, shape.num_kv_heads, shape.head_dim});
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      cache.append(layer, id, chunk, chunk);
    }
    begin += size;
  }
  cache.settle(id);
}

// Bytes of a real cache.
double real_bytes(const KvShape& shape, const CacheSpec& spec, int64_t num_tokens, int64_t batch,
                  ThreadPool& pool) {
  const RopeTable rope(shape.head_dim, 8192, 10000);  // a model reads more than this run
  KvCache cache(shape, spec, CacheMode::kAsServed, rope, pool);
  for (int64_t i = 0; i < batch; ++i) {
    fill(cache, cache.add_sequence(), num_tokens, static_cast<uint32_t>(5 + i));
  }
  return static_cast<double>(cache.memory_bytes());
}

TEST(Forecast, IsWithinTwoPercentOfARealCache) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const KvShape shape{2, 2, 64};
  for (const char* text :
       {"fp16", "fp32", "int8", "int4,block=64", "nuq4", "nuq3-1%", "nuq2-5%", "k=nuq3,v=had+nuq3",
        "k=nuq2-2%,v=bf16,block=64", "nuq4-1%,layers=1:fp16", "nuq4,sink=100,recent=1500",
        "nuq3-1%,sink=0,recent=0,block=1024", "nuq4-0.1%,block=192", "nuq4-1%,recent=5000",
        "v=lnns+int8", "k=nuq4,v=lnns+nuq3-2%"}) {
    const CacheSpec spec = parse_spec(text);
    const CacheForecast forecast = forecast_cache(shape, spec, pool);
    // One token, tile and block borders, half-empty blocks, and beyond what was tried.
    for (const int64_t num_tokens : {1, 63, 64, 132, 256, 300, 1000, 1025, 4096, 7001}) {
      const double real = real_bytes(shape, spec, num_tokens, 1, pool);
      EXPECT_NEAR(forecast.bytes(num_tokens) / real, 1, 0.02) << text << " " << num_tokens;
    }
    const double real = real_bytes(shape, spec, 600, 3, pool);
    EXPECT_NEAR(forecast.bytes(600, 3) / real, 1, 0.02) << text << " batch of 3";
  }
}

TEST(Forecast, IsWithinTwoPercentAtOtherShapes) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  for (const KvShape& shape : {KvShape{1, 1, 16}, KvShape{1, 8, 128}, KvShape{3, 5, 80}}) {
    for (const char* text : {"nuq4-1%", "nuq2-0.5%,sink=16,recent=128"}) {
      const CacheSpec spec = parse_spec(text);
      const CacheForecast forecast = forecast_cache(shape, spec, pool);
      for (const int64_t num_tokens : {500, 3000}) {
        const double real = real_bytes(shape, spec, num_tokens, 2, pool);
        EXPECT_NEAR(forecast.bytes(num_tokens, 2) / real, 1, 0.02) << text << " " << num_tokens;
      }
    }
  }
}

TEST(Forecast, OfLowRankCodecsNeedsNoCalibration) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const auto per_token = [&](const char* spec) {
    return forecast_cache({3, 2, 64}, parse_spec(spec), pool).bytes_per_token();
  };
  const double keys = 3 * 2 * 64 * 2;
  EXPECT_NEAR(per_token("v=pca48"), keys + 3 * 2 * 48 * 2, 1);
  EXPECT_NEAR(per_token("v=pcaw48+int8"), keys + 3 * 2 * (48 + 4), 1);
  EXPECT_NEAR(per_token("k=pca48,v=pca32+int8"), 3 * 2 * (48 * 2 + 32 + 4), 1);
  EXPECT_NEAR(per_token("k=int8,v=pca32+had+int4,layers=0-1:v=pca48+int4"),
              keys / 2 + 2 * 2 * (24 + 4) + 2 * (16 + 4), 1);
}

TEST(Forecast, OfFp16IsTwoBytesAValue) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const CacheForecast forecast = forecast_cache({3, 2, 64}, parse_spec("fp16"), pool);
  EXPECT_NEAR(forecast.bytes_per_token(), 3 * 2 * 64 * 2 * 2, 1);
}

TEST(Forecast, FindsWhatFitsAndNotOneMore) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  for (const char* text : {"fp16", "nuq3-1%", "nuq4,recent=1500"}) {
    const CacheForecast forecast = forecast_cache({2, 2, 64}, parse_spec(text), pool);
    for (const int64_t max_bytes : {1, 100000, 1 << 20, 100 << 20}) {
      const int64_t longest = forecast.longest_context(max_bytes);
      const auto limit = static_cast<double>(max_bytes);
      EXPECT_TRUE(longest == 0 || forecast.bytes(longest) <= limit) << text;
      EXPECT_GT(forecast.bytes(longest + 1), limit) << text;
      const int64_t batch = forecast.largest_batch(max_bytes, 700);
      EXPECT_TRUE(batch == 0 || forecast.bytes(700, batch) <= limit) << text;
      EXPECT_GT(forecast.bytes(700, batch + 1), limit) << text;
    }
    EXPECT_EQ(forecast.longest_context(1), 0);
    EXPECT_EQ(forecast.largest_batch(1, 700), 0);
  }
}

TEST(Forecast, WhatItSaysFitsDoesFit) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const KvShape shape{2, 2, 64};
  constexpr int64_t kMaxBytes = 1 << 20;
  for (const char* text : {"fp16", "nuq4", "nuq3-1%"}) {
    const CacheSpec spec = parse_spec(text);
    const CacheForecast forecast = forecast_cache(shape, spec, pool);
    // Outliers are random: two percent of room.
    const auto cautious = static_cast<int64_t>(kMaxBytes * 0.98);
    EXPECT_LE(real_bytes(shape, spec, forecast.longest_context(cautious), 1, pool), kMaxBytes);
    EXPECT_LE(real_bytes(shape, spec, 200, forecast.largest_batch(cautious, 200), pool), kMaxBytes);
    const auto generous = static_cast<int64_t>(kMaxBytes * 1.02);
    EXPECT_GT(real_bytes(shape, spec, forecast.longest_context(generous) + 1, 1, pool), kMaxBytes);
    EXPECT_GT(real_bytes(shape, spec, 200, forecast.largest_batch(generous, 200) + 1, pool),
              kMaxBytes);
  }
}

}  // namespace
}  // namespace kvquant
