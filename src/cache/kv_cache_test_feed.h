// For tests: a small KvCache that is fed the same rows in every layer, and all that it holds.
#pragma once

#include <vector>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_model.h"

namespace kvquant::test {

inline constexpr KvShape kFedShape{2, 3, 16};
inline constexpr int64_t kFedRowSize = 48;

struct FedCache {
  explicit FedCache(const char* spec, CacheMode mode, int num_threads = 1,
                    int64_t sliding_window = 0)
      : pool(num_threads, ThreadPool::Pin::kNo),
        cache({2, 3, 16, sliding_window}, parse_spec(spec), mode, rope, pool) {}

  FedCache(const char* spec, CacheMode mode, int num_threads,
           const std::vector<int64_t>& layer_windows)
      : pool(num_threads, ThreadPool::Pin::kNo),
        cache({2, 3, 16, 0, layer_windows}, parse_spec(spec), mode, rope, pool) {}

  // Rows [first, first + num_new) of a stream.
  void append(KvCache::SequenceId id, const std::vector<Row>& rows, int64_t first,
              int64_t num_new) {
    const std::vector<Row> chunk(rows.begin() + first, rows.begin() + first + num_new);
    std::vector<float> flat;
    const auto x = as_chunk(chunk, kFedShape.num_kv_heads, flat);
    for (int64_t layer = 0; layer < kFedShape.num_layers; ++layer) cache.append(layer, id, x, x);
  }

  // All numbers of the last layer's view.
  std::vector<float> contents(KvCache::SequenceId id) {
    std::vector<float> out;
    cache.prepare_view(kFedShape.num_layers - 1, id);
    for (int64_t head = 0; head < kFedShape.num_kv_heads; ++head) {
      for (const AttendRun& run : cache.view(kFedShape.num_layers - 1, id, head)) {
        for (int64_t t = 0; t < run.num_tokens; ++t) {
          for (const float x : key_in_run(run, t, kFedShape.head_dim)) out.push_back(x);
          for (const float x : value_in_run(run, t, kFedShape.head_dim)) out.push_back(x);
        }
      }
    }
    return out;
  }

  RopeTable rope{16, 1000, 10000};
  ThreadPool pool;
  KvCache cache;
};

inline std::vector<Row> stream(int64_t num_tokens, unsigned seed = 21) {
  std::mt19937 rng(seed);
  return random_rows(num_tokens, kFedRowSize, rng);
}

}  // namespace kvquant::test
