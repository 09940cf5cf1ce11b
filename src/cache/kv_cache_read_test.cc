#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "cache/kv_cache_test_feed.h"
#include "cache/kv_cache_test_specs.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::kFedShape;

struct Expected {
  std::vector<test::Row> keys, values;  // [position * num_kv_heads + head], or empty: not read
};

// From the views that attention reads, number by number.
Expected expected_of(FedCache& fed, KvCache::SequenceId id, int64_t layer, int64_t length) {
  Expected out;
  out.keys.resize(static_cast<size_t>(length * kFedShape.num_kv_heads));
  out.values.resize(out.keys.size());
  fed.cache.prepare_view(layer, id);
  for (int64_t head = 0; head < kFedShape.num_kv_heads; ++head) {
    for (const AttendRun& run : fed.cache.view(layer, id, head)) {
      for (int64_t t = 0; t < run.num_tokens; ++t) {
        const int64_t position = run.first_position + t, lag = length - 1 - position;
        if (lag < run.min_lag || lag >= run.max_lag) continue;
        const auto at = static_cast<size_t>(position * kFedShape.num_kv_heads + head);
        out.keys[at] = test::key_in_run(run, t, kFedShape.head_dim);
        out.values[at] = test::value_in_run(run, t, kFedShape.head_dim);
      }
    }
  }
  return out;
}

// tolerance: of values, which are the same to the bit where they aren't latents.
void expect_rows(const Expected& expected, const ReadTokens& read, int64_t row_of_read,
                 float tolerance) {
  for (int64_t head = 0; head < kFedShape.num_kv_heads; ++head) {
    const auto at =
        static_cast<size_t>((read.first_position + row_of_read) * kFedShape.num_kv_heads + head);
    ASSERT_EQ(expected.keys[at].size(), static_cast<size_t>(kFedShape.head_dim));
    for (int64_t c = 0; c < kFedShape.head_dim; ++c) {
      const auto i = static_cast<size_t>(
          (row_of_read * kFedShape.num_kv_heads + head) * kFedShape.head_dim + c);
      const float key = expected.keys[at][static_cast<size_t>(c)];
      ASSERT_NEAR(read.keys[i], key, 1e-4 * (1 + std::fabs(key)));  // of rotation in f32
      const float value = expected.values[at][static_cast<size_t>(c)];
      ASSERT_NEAR(read.values[i], value, tolerance * (1 + std::fabs(value)));
    }
  }
}

void expect_what_is_viewed(const char* spec, CacheMode mode, int64_t window) {
  SCOPED_TRACE(std::string(spec) + ", window " + std::to_string(window));
  FedCache fed(spec, mode, 2, window);
  const auto rows = test::stream(330);
  const auto id = fed.cache.add_sequence();
  int64_t length = 0;
  for (const int64_t size : {1, 63, 1, 200, 2, 63}) {
    fed.append(id, rows, length, size);
    length += size;
    const int64_t layer = kFedShape.num_layers - 1;
    const Expected expected = expected_of(fed, id, layer, length);
    const ReadTokens read = fed.cache.read(layer, id);
    EXPECT_EQ(read.first_position, window == 0 ? 0 : std::max<int64_t>(0, length - window));
    ASSERT_EQ(read.first_position + read.num_tokens, length);
    const float tolerance = std::string(spec).find("v=lnns") != std::string::npos ? 1e-4f : 0;
    for (int64_t row = 0; row < read.num_tokens; ++row) {
      expect_rows(expected, read, row, tolerance);
    }
  }
}

TEST(KvCacheRead, GivesWhatTheLastQueryOfAttentionReads) {
  for (const char* spec : test::kSpecs) {
    for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
      expect_what_is_viewed(spec, mode, 0);
    }
  }
}

TEST(KvCacheRead, LeavesOutWhatASlidingWindowHasPassed) {
  for (const char* spec : {"fp16", "nuq3-1%,block=64", "k=fp16,v=nuq4,sink=3,recent=10"}) {
    for (const CacheMode mode : {CacheMode::kStrict, CacheMode::kAsServed}) {
      expect_what_is_viewed(spec, mode, 100);
    }
  }
}

TEST(KvCacheRead, EveryLayerHasItsOwnWindow) {
  FedCache fed("nuq3-1%,block=64", CacheMode::kAsServed, 2, std::vector<int64_t>{100, 0});
  const auto id = fed.cache.add_sequence();
  fed.append(id, test::stream(330), 0, 330);
  EXPECT_EQ(fed.cache.read(1, id).first_position, 0);
  const Expected whole = expected_of(fed, id, 1, 330);
  EXPECT_EQ(whole.keys[0].size(), static_cast<size_t>(kFedShape.head_dim));

  FedCache other("nuq3-1%,block=64", CacheMode::kAsServed, 2, std::vector<int64_t>{0, 100});
  const auto again = other.cache.add_sequence();
  other.append(again, test::stream(330), 0, 330);
  EXPECT_EQ(other.cache.read(1, again).first_position, 230);
  const Expected windowed = expected_of(other, again, 1, 330);
  EXPECT_TRUE(windowed.keys[0].empty());
  EXPECT_THROW(FedCache("nuq3", CacheMode::kAsServed, 2, std::vector<int64_t>{1}),
               std::invalid_argument);
  EXPECT_THROW(FedCache("nuq3", CacheMode::kAsServed, 2, std::vector<int64_t>{1, -1}),
               std::invalid_argument);
}

TEST(KvCacheRead, RefusesWhatItCannotRead) {
  FedCache fed("nuq3", CacheMode::kAsServed);
  const auto id = fed.cache.add_sequence();
  fed.append(id, test::stream(10), 0, 10);
  EXPECT_THROW(fed.cache.read(2, id), std::invalid_argument);
  EXPECT_THROW(fed.cache.read(0, id + 1), std::invalid_argument);
  FedCache empty("nuq3", CacheMode::kStrict);
  EXPECT_EQ(empty.cache.read(0, empty.cache.add_sequence()).num_tokens, 0);
}

}  // namespace
}  // namespace kvquant
