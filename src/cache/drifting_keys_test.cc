// Keys without calibration that leave the ranges of their first tokens.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/half.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_test_feed.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::kFedShape;
using test::Row;
using test::stream;

// Three times as large from token 512 on.
std::vector<Row> growing_stream(int64_t num_tokens) {
  std::vector<Row> rows = stream(num_tokens);
  for (size_t t = 512; t < rows.size(); ++t) {
    for (float& x : rows[t]) x = round_to_half(3 * x);
  }
  return rows;
}

struct Grown {
  Grown(const char* spec, int64_t second_chunk) : fed(spec, CacheMode::kStrict) {
    id = fed.cache.add_sequence();
    fed.append(id, rows, 0, 500);
    for (int64_t t = 500; t < 900; t += second_chunk) fed.append(id, rows, t, second_chunk);
    fed.cache.prepare_view(1, id);
  }
  const CodedSide& keys(int64_t head) { return *fed.cache.view(1, id, head)[0].coded_keys; }
  int64_t num_outliers(int64_t first_tile, int64_t end_tile) {
    int64_t sum = 0;
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      for (int64_t head = 0; head < kFedShape.num_kv_heads; ++head) {
        const CodedSide& side = keys(head);
        const std::byte* block = side.blocks[tile / side.shape.num_tiles];
        const auto* counts = reinterpret_cast<const uint16_t*>(block + side.layout.counts);
        sum += counts[tile % side.shape.num_tiles * kFedShape.num_kv_heads + head];
      }
    }
    return sum;
  }
  // Mean square of what keys of tokens from 512 on lose, beside that of the keys.
  double loss() {
    double lost = 0, all = 0;
    for (int64_t t = 512; t < 900; ++t) {
      for (int64_t head = 0; head < kFedShape.num_kv_heads; ++head) {
        const auto tile = test::decode_planar(keys(head), KvSide::kKey, t / 64, 64);
        for (int64_t c = 0; c < 16; ++c) {
          const double x = rows[t][head * 16 + c], error = tile[c * 64 + t % 64] - x;
          lost += error * error;
          all += x * x;
        }
      }
    }
    return lost / all;
  }

  std::vector<Row> rows = growing_stream(1100);
  FedCache fed;
  KvCache::SequenceId id = 0;
};

TEST(DriftingKeys, AreFittedAnewFromTheNextTileOn) {
  Grown grown("nuq4-2%,block=128", 400);
  const auto starts = grown.keys(0).segment_starts;
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0], 8);  // tokens 500 to 511 fill up tile 7
  EXPECT_LT(grown.num_outliers(8, 14), 0.04 * 6 * 64 * 48);
  EXPECT_LT(grown.loss(), 0.01);
}

TEST(DriftingKeys, OfShortChunksKeepTheirRanges) {
  Grown grown("nuq4-2%,block=128", 100);
  EXPECT_TRUE(grown.keys(0).segment_starts.empty());
  EXPECT_GT(grown.num_outliers(8, 14), 0.2 * 6 * 64 * 48);  // but are exact then
}

TEST(DriftingKeys, LoseLessThanWhenTheyAreClamped) {
  Grown fitted("nuq4,block=128", 400), clamped("nuq4,block=128", 100);
  EXPECT_LT(fitted.loss(), 0.06);
  EXPECT_GT(clamped.loss(), 4 * fitted.loss());
}

TEST(DriftingKeys, AreReadAlikeInForksAndRestoredSequences) {
  for (const char* spec : {"nuq4-2%,block=128,sink=4", "nuq3,block=64", "int8,sink=1"}) {
    SCOPED_TRACE(spec);
    Grown grown(spec, 400);
    KvCache& cache = grown.fed.cache;
    const auto fork = cache.fork(grown.id);
    const auto restored = cache.restore(cache.store(grown.id));
    const auto expected = grown.fed.contents(grown.id);
    EXPECT_EQ(grown.fed.contents(fork), expected);
    EXPECT_EQ(grown.fed.contents(restored), expected);
    for (const auto id : {grown.id, fork, restored}) grown.fed.append(id, grown.rows, 900, 70);
    const auto longer = grown.fed.contents(grown.id);
    EXPECT_EQ(grown.fed.contents(fork), longer);
    EXPECT_EQ(grown.fed.contents(restored), longer);
  }
}

}  // namespace
}  // namespace kvquant
