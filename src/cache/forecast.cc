#include "cache/forecast.h"

#include <algorithm>
#include <random>
#include <vector>

namespace kvquant {
namespace {

int64_t bytes_at(const KvShape& shape, const CacheSpec& spec, int64_t num_tokens,
                 ThreadPool& pool) {
  constexpr int64_t kChunk = 256;
  const RopeTable rope(shape.head_dim, num_tokens, 10000.0);
  KvCache cache(shape, spec, CacheMode::kAsServed, rope, pool);
  const auto id = cache.add_sequence();
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(static_cast<size_t>(kChunk * shape.num_kv_heads * shape.head_dim));
  std::vector<float> values(keys.size());
  for (auto* x : {&keys, &values}) {
    for (float& v : *x) v = normal(rng);
  }
  const int64_t dims[3] = {kChunk, shape.num_kv_heads, shape.head_dim};
  for (int64_t begin = 0; begin < num_tokens; begin += kChunk) {
    cache.append(0, id, row_major<const float, 3>(keys.data(), dims),
                 row_major<const float, 3>(values.data(), dims));
  }
  cache.settle(id);
  return cache.memory_bytes();
}

}  // namespace

CacheForecast forecast_cache(const KvShape& shape, const CacheSpec& spec, ThreadPool& pool) {
  // Two lengths past the windows, whole numbers of blocks of every size apart, so that no
  // half-empty block differs.
  constexpr int64_t kStep = 1024, kLargestWindow = 1 << 16;
  const CacheSpec full = with_windows(spec, CacheMode::kAsServed);
  const int64_t windows = std::min<int64_t>(*full.sink, kLargestWindow) +
                          std::min<int64_t>(*full.recent, kLargestWindow);
  const int64_t short_length = (windows / kStep + 1) * kStep, long_length = short_length + kStep;
  KvShape one_layer = shape;
  one_layer.num_layers = 1;
  CacheForecast total;
  std::vector<std::pair<CacheSpec, CacheForecast>> known;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    CacheSpec single = spec;
    single.key = spec.key_of(static_cast<int>(layer));
    single.value = spec.value_of(static_cast<int>(layer));
    single.overrides.clear();
    const CacheForecast* found = nullptr;
    for (const auto& [other, forecast] : known) {
      if (other.key == single.key && other.value == single.value) found = &forecast;
    }
    if (found == nullptr) {
      const auto at_short = static_cast<double>(bytes_at(one_layer, single, short_length, pool));
      const auto at_long = static_cast<double>(bytes_at(one_layer, single, long_length, pool));
      CacheForecast forecast;
      forecast.bytes_per_token = (at_long - at_short) / kStep;
      forecast.fixed_bytes =
          at_short - forecast.bytes_per_token * static_cast<double>(short_length);
      known.emplace_back(single, forecast);
      found = &known.back().second;
    }
    total.fixed_bytes += found->fixed_bytes;
    total.bytes_per_token += found->bytes_per_token;
  }
  return total;
}

}  // namespace kvquant
