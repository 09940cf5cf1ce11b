#include "cache/forecast.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kvquant {
namespace {

// Bytes of a real cache of normal data, fed in chunks of 512 and then token by token.
int64_t real_bytes(const KvShape& shape, const CacheSpec& spec, int64_t num_tokens,
                   ThreadPool& pool) {
  const RopeTable rope(shape.head_dim, num_tokens, 10000);
  KvCache cache(shape, spec, CacheMode::kAsServed, rope, pool);
  const auto id = cache.add_sequence();
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  for (int64_t begin = 0; begin < num_tokens;) {
    const int64_t size =
        num_tokens - begin > 16 ? std::min<int64_t>(512, num_tokens - begin - 16) : 1;
    std::vector<float> x(static_cast<size_t>(size * shape.num_kv_heads * shape.head_dim));
    for (float& v : x) v = normal(rng);
    const auto chunk =
        row_major<const float, 3>(x.data(), {size, shape.num_kv_heads, shape.head_dim});
    for (int64_t layer = 0; layer < shape.num_layers; ++layer)
      cache.append(layer, id, chunk, chunk);
    begin += size;
  }
  cache.settle(id);
  return cache.memory_bytes();
}

TEST(Forecast, IsWithinTwoPercentOfARealCache) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const KvShape shape{2, 2, 64};
  for (const char* text : {"fp16", "fp32", "nuq4", "nuq3-1%", "k=nuq2-2%,v=bf16,block=64",
                           "nuq4-1%,layers=1:fp16", "nuq4,sink=100,recent=1500"}) {
    const CacheSpec spec = parse_spec(text);
    const CacheForecast forecast = forecast_cache(shape, spec, pool);
    const auto real = static_cast<double>(real_bytes(shape, spec, 4096, pool));
    EXPECT_NEAR(forecast.bytes(4096) / real, 1, 0.02) << text;
  }
}

TEST(Forecast, OfFp16IsTwoBytesAValue) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const CacheForecast forecast = forecast_cache({3, 2, 64}, parse_spec("fp16"), pool);
  EXPECT_NEAR(forecast.bytes_per_token, 3 * 2 * 64 * 2 * 2, 1);
}

}  // namespace
}  // namespace kvquant
