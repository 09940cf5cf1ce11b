#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_feed.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::stream;

int64_t bytes_of(const KvCache& cache) { return cache.memory_bytes() + cache.scratch_bytes(); }

// The most that is seen between any two calls while rows arrive, chunk by chunk.
int64_t feed_and_watch(FedCache& fed, KvCache::SequenceId id, int64_t num_tokens, int64_t chunk) {
  const auto rows = stream(num_tokens);
  int64_t most = bytes_of(fed.cache);
  for (int64_t first = 0; first < num_tokens; first += chunk) {
    std::vector<float> flat;
    const auto x = test::as_chunk({rows.begin() + first, rows.begin() + first + chunk},
                                  test::kFedShape.num_kv_heads, flat);
    for (int64_t layer = 0; layer < test::kFedShape.num_layers; ++layer) {
      fed.cache.append(layer, id, x, x);
      most = std::max(most, bytes_of(fed.cache));
      fed.cache.prepare_view(layer, id);
      most = std::max(most, bytes_of(fed.cache));
    }
    fed.cache.settle(id);
    most = std::max(most, bytes_of(fed.cache));
  }
  return most;
}

TEST(PeakBytes, AreNoLessThanWhatWasSeenAndLittleMore) {
  for (const char* spec : {"fp16", "nuq3-1%,block=64", "k=nuq4,v=fp16"}) {
    SCOPED_TRACE(spec);
    FedCache fed(spec, CacheMode::kAsServed);
    const int64_t most = feed_and_watch(fed, fed.cache.add_sequence(), 600, 100);
    EXPECT_GE(fed.cache.peak_bytes(), most);
    EXPECT_LE(fed.cache.peak_bytes(), most + most / 20);
  }
}

TEST(PeakBytes, StayWhenSequencesGoUntilTheyAreReset) {
  FedCache fed("fp16", CacheMode::kAsServed);
  const auto rows = stream(600);
  const auto kept = fed.cache.add_sequence(), dropped = fed.cache.add_sequence();
  fed.append(kept, rows, 0, 10);
  fed.append(dropped, rows, 0, 600);
  const int64_t peak = fed.cache.peak_bytes();
  fed.cache.drop(dropped);
  EXPECT_LT(bytes_of(fed.cache), peak / 2);
  EXPECT_GT(fed.cache.peak_bytes(), peak * 9 / 10);
  fed.cache.reset_peak();
  EXPECT_EQ(fed.cache.peak_bytes(), bytes_of(fed.cache));
}

TEST(MemoryBytes, OfASequenceAreWhatItHoldsAlone) {
  const auto rows = stream(600);
  for (const char* spec : {"fp16", "nuq3-1%,block=64", "k=nuq4,v=fp16"}) {
    SCOPED_TRACE(spec);
    FedCache forked(spec, CacheMode::kAsServed), alone(spec, CacheMode::kAsServed);
    const auto id = alone.cache.add_sequence(), parent = forked.cache.add_sequence();
    forked.append(parent, rows, 0, 300);
    const auto fork = forked.cache.fork(parent);
    for (const int64_t num_new : {1, 60, 150}) {
      forked.append(fork, rows, 300, num_new);
      forked.cache.settle(fork);
    }
    alone.append(id, rows, 0, 300);
    for (const int64_t num_new : {1, 60, 150}) alone.append(id, rows, 300, num_new);
    alone.cache.settle(id);
    EXPECT_EQ(forked.cache.memory_bytes(std::array{fork}), alone.cache.memory_bytes());
    EXPECT_LT(forked.cache.memory_bytes(), forked.cache.memory_bytes(std::array{fork}) +
                                               forked.cache.memory_bytes(std::array{parent}));
  }
}

}  // namespace
}  // namespace kvquant
