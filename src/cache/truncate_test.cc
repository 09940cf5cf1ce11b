// Going back in a sequence: what is appended after a truncation is stored as in a fresh cache.
#include <gtest/gtest.h>

#include <stdexcept>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_model.h"

namespace kvquant {
namespace {

using test::Row;

constexpr KvShape kShape{2, 2, 16};
constexpr int64_t kRowSize = 32;

class TruncateTest : public testing::Test {
 protected:
  KvCache make(const char* spec, CacheMode mode) {
    return {kShape, parse_spec(spec), mode, rope_, pool_};
  }

  // Rows [first, first + count) of a stream, through all layers.
  static void append(KvCache& cache, const std::vector<Row>& rows, int64_t first, int64_t count) {
    const std::vector<Row> chunk(rows.begin() + first, rows.begin() + first + count);
    std::vector<float> flat;
    const auto x = test::as_chunk(chunk, kShape.num_kv_heads, flat);
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) cache.append(layer, 0, x, x);
  }

  // All numbers of the last layer's view, those of unused tokens included.
  static std::vector<float> contents(KvCache& cache) {
    std::vector<float> out;
    cache.prepare_view(kShape.num_layers - 1, 0);
    for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
      for (const AttendRun& run : cache.view(kShape.num_layers - 1, 0, head)) {
        for (int64_t t = 0; t < (run.num_tokens + 63) / 64 * 64; ++t) {
          for (const float x : test::key_in_run(run, t, kShape.head_dim)) out.push_back(x);
          for (const float x : test::value_in_run(run, t, kShape.head_dim)) out.push_back(x);
        }
      }
    }
    return out;
  }

  static std::vector<Row> stream(int64_t num_tokens, unsigned seed) {
    std::mt19937 rng(seed);
    return test::random_rows(num_tokens, kRowSize, rng);
  }

  RopeTable rope_{16, 2000, 10000};
  ThreadPool pool_{1, ThreadPool::Pin::kNo};
};

TEST_F(TruncateTest, ADenseCacheEqualsAFreshOneAfterwards) {
  const auto rows = stream(600, 1), others = stream(600, 2);
  for (const char* spec : {"fp16", "fp32", "bf16,block=64", "k=fp16,v=bf16,block=128"}) {
    for (const int64_t left : {0, 1, 10, 64, 255, 256, 399, 400}) {
      SCOPED_TRACE(testing::Message() << spec << ", back to " << left);
      KvCache cache = make(spec, CacheMode::kAsServed);
      cache.add_sequence();
      append(cache, rows, 0, 400);
      ASSERT_TRUE(cache.can_truncate(0, left));
      cache.truncate(0, left);
      EXPECT_EQ(cache.length(0), left);
      append(cache, others, 0, 70);

      KvCache fresh = make(spec, CacheMode::kAsServed);
      fresh.add_sequence();
      if (left > 0) append(fresh, rows, 0, left);
      append(fresh, others, 0, 70);
      EXPECT_EQ(contents(cache), contents(fresh));
      EXPECT_EQ(cache.memory_bytes(), fresh.memory_bytes());
    }
  }
}

TEST_F(TruncateTest, AnExactTailEqualsAFreshOneAfterwards) {
  const auto rows = stream(600, 1), others = stream(600, 2);
  for (const char* spec : {"nuq4", "nuq3-1%,block=64", "k=nuq2-2%,v=fp16,sink=0"}) {
    SCOPED_TRACE(spec);
    KvCache cache = make(spec, CacheMode::kAsServed), fresh = make(spec, CacheMode::kAsServed);
    for (KvCache* c : {&cache, &fresh}) {
      c->add_sequence();
      append(*c, rows, 0, 300);
      c->settle(0);
    }
    append(cache, others, 0, 20);  // no tile gets full
    cache.settle(0);
    cache.truncate(0, 300);
    for (KvCache* c : {&cache, &fresh}) {
      append(*c, others, 100, 150);
      append(*c, others, 250, 1);
    }
    EXPECT_EQ(contents(cache), contents(fresh));
  }
}

TEST_F(TruncateTest, WhileNothingIsEncodedEvenSinksCanBeForgotten) {
  const auto rows = stream(600, 1), others = stream(600, 2);
  KvCache cache = make("nuq4-1%,sink=8", CacheMode::kAsServed);
  cache.add_sequence();
  append(cache, rows, 0, 30);
  cache.settle(0);
  cache.truncate(0, 3);
  KvCache fresh = make("nuq4-1%,sink=8", CacheMode::kAsServed);
  fresh.add_sequence();
  append(fresh, rows, 0, 3);
  for (KvCache* c : {&cache, &fresh}) {
    append(*c, others, 0, 300);
    append(*c, others, 300, 1);
  }
  EXPECT_EQ(contents(cache), contents(fresh));
}

TEST_F(TruncateTest, EncodedTokensCannotBeForgotten) {
  const auto rows = stream(600, 1);
  KvCache cache = make("nuq4,sink=4,recent=64", CacheMode::kAsServed);
  KvCache twin = make("nuq4,sink=4,recent=64", CacheMode::kAsServed);
  for (KvCache* c : {&cache, &twin}) {
    c->add_sequence();
    append(*c, rows, 0, 300);
    c->settle(0);  // 4 sinks, 192 encoded, 104 in the tail
  }
  for (const int64_t left : {-1, 0, 3, 195, 301}) {
    EXPECT_FALSE(cache.can_truncate(0, left)) << left;
    EXPECT_THROW(cache.truncate(0, left), std::invalid_argument) << left;
  }
  EXPECT_EQ(cache.length(0), 300);
  EXPECT_TRUE(cache.can_truncate(0, 196));
  for (KvCache* c : {&cache, &twin}) append(*c, rows, 300, 1);
  EXPECT_EQ(contents(cache), contents(twin));

  KvCache strict = make("nuq4", CacheMode::kStrict);
  strict.add_sequence();
  append(strict, rows, 0, 10);
  strict.settle(0);
  EXPECT_FALSE(strict.can_truncate(0, 9));
  EXPECT_TRUE(strict.can_truncate(0, 10));
}

// Key parameters come from what is there when the first tokens are encoded, not from a prompt of a
// few tokens, which says next to nothing about a channel's range.
TEST_F(TruncateTest, AShortFirstChunkDoesNotSpoilTheKeys) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<Row> rows(400, Row(kRowSize));
  for (Row& row : rows) {
    for (float& x : row) x = normal(rng);
  }
  KvCache cache = make("nuq4,sink=4", CacheMode::kAsServed);
  KvCache exact = make("fp16", CacheMode::kAsServed);
  for (KvCache* c : {&cache, &exact}) {
    c->add_sequence();
    append(*c, rows, 0, 5);
    for (int64_t t = 5; t < 400; ++t) append(*c, rows, t, 1);
    c->prepare_view(1, 0);
  }
  ASSERT_GT(cache.num_compressed_tokens(0), 250);
  double squares = 0;
  int64_t count = 0;
  const AttendRun whole = exact.view(1, 0, 0)[0];
  for (const AttendRun& run : cache.view(1, 0, 0)) {
    for (int64_t t = 0; t < run.num_tokens; ++t) {
      const Row a = test::key_in_run(run, t, 16);
      const Row b = test::key_in_run(whole, run.first_position + t, 16);
      for (size_t c = 0; c < a.size(); ++c, ++count) squares += (a[c] - b[c]) * (a[c] - b[c]);
    }
  }
  EXPECT_LT(squares / static_cast<double>(count), 0.05);  // of variance 1
}

}  // namespace
}  // namespace kvquant
