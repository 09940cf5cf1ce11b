// Sequences that share what they have in common.
#include <gtest/gtest.h>

#include <stdexcept>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_feed.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::Row;
using test::stream;

constexpr const char* kSpecs[] = {"fp16",
                                  "fp32,block=64",
                                  "nuq4",
                                  "nuq3-2%,block=64",
                                  "int8,sink=70,recent=30",
                                  "k=nuq2-5%,v=fp16",
                                  "k=bf16,v=had+nuq3-1%,layers=1:nuq4-1%",
                                  "k=lnns+int4,v=fp16,sink=3,layers=1:lnns"};

class Fork : public testing::TestWithParam<CacheMode> {};

TEST_P(Fork, AndItsParentGoOnAsIfTheyWereAlone) {
  const auto rows = stream(600), others = stream(600, 5);
  for (const char* spec : kSpecs) {
    for (const int64_t shared : {1, 3, 64, 200, 260}) {
      SCOPED_TRACE(testing::Message() << spec << ", after " << shared);
      FedCache forked(spec, GetParam()), alone(spec, GetParam());
      const auto a = forked.cache.add_sequence();
      forked.append(a, rows, 0, shared);
      const auto b = forked.cache.fork(a);
      EXPECT_EQ(forked.cache.length(b), shared);
      const auto c = alone.cache.add_sequence(), d = alone.cache.add_sequence();
      for (const auto id : {c, d}) alone.append(id, rows, 0, shared);
      for (int64_t first = 300; first < 600; first += 75) {
        forked.append(b, others, first, 75);
        alone.append(d, others, first, 75);
        ASSERT_EQ(forked.contents(b), alone.contents(d));
        forked.append(a, rows, first, 75);
        alone.append(c, rows, first, 75);
        ASSERT_EQ(forked.contents(a), alone.contents(c));
      }
      EXPECT_LE(forked.cache.memory_bytes(), alone.cache.memory_bytes());
    }
  }
}

TEST_P(Fork, CostsTablesUntilItIsWritten) {
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    FedCache f(spec, GetParam());
    const auto id = f.cache.add_sequence();
    f.append(id, stream(600), 0, 600);
    f.cache.settle(id);
    const int64_t bytes = f.cache.memory_bytes();
    const auto fork = f.cache.fork(id);
    // 8 bytes per block and page, four fp16 numbers per key channel.
    EXPECT_LE(f.cache.memory_bytes() - bytes, bytes / 10 + 2 * 4 * 2 * test::kFedRowSize);
    EXPECT_GT(f.cache.memory_bytes(), bytes);
    f.cache.drop(fork);
    EXPECT_EQ(f.cache.memory_bytes(), bytes);
  }
}

TEST_P(Fork, LeavesMemoryOfThoseThatStayWhateverTheOrderOfDropping) {
  const auto rows = stream(600);
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    FedCache alone(spec, GetParam());
    const int64_t nothing = alone.cache.memory_bytes();
    int64_t expected[3] = {};
    for (int i = 0; i < 3; ++i) {
      const auto id = alone.cache.add_sequence();
      alone.append(id, rows, 0, 300);
      if (i > 0) alone.append(id, rows, 300, i * 50);
      alone.cache.settle(id);
      expected[i] = alone.cache.memory_bytes();
      alone.cache.drop(id);
      EXPECT_EQ(alone.cache.memory_bytes(), nothing);
    }
    for (int last = 0; last < 3; ++last) {
      for (const bool other_first : {false, true}) {
        FedCache f(spec, GetParam());
        KvCache::SequenceId ids[3] = {f.cache.add_sequence(), 0, 0};
        f.append(ids[0], rows, 0, 300);
        for (int i = 1; i < 3; ++i) {
          ids[i] = f.cache.fork(ids[0]);
          f.append(ids[i], rows, 300, i * 50);
        }
        for (const auto id : ids) f.cache.settle(id);
        const int first = (last + (other_first ? 1 : 2)) % 3;
        f.cache.drop(ids[first]);
        f.cache.drop(ids[3 - first - last]);
        EXPECT_EQ(f.cache.memory_bytes(), expected[last]);
        f.cache.drop(ids[last]);
        EXPECT_EQ(f.cache.memory_bytes(), nothing);
      }
    }
  }
}

TEST_P(Fork, OfAForkSharesWithBoth) {
  const auto rows = stream(600);
  FedCache f("nuq3-1%,block=64", GetParam());
  const auto a = f.cache.add_sequence();
  f.append(a, rows, 0, 200);
  const auto b = f.cache.fork(a);
  f.append(b, rows, 200, 100);
  const auto c = f.cache.fork(b);
  f.append(b, rows, 300, 1);
  const auto expected = f.contents(b);
  f.cache.drop(a);
  f.append(c, rows, 300, 1);
  EXPECT_EQ(f.contents(c), expected);
  f.cache.drop(b);
  f.append(c, rows, 400, 150);
  EXPECT_EQ(f.cache.length(c), 451);
}

TEST_P(Fork, OfWhatIsNotThereIsRefused) {
  FedCache f("nuq4", GetParam());
  const auto id = f.cache.add_sequence();
  EXPECT_EQ(f.cache.length(f.cache.fork(id)), 0);  // an empty one
  EXPECT_THROW(f.cache.fork(77), std::invalid_argument);
  std::vector<float> flat;
  const auto chunk = test::as_chunk(stream(5), test::kFedShape.num_kv_heads, flat);
  f.cache.append(0, id, chunk, chunk);
  EXPECT_THROW(f.cache.fork(id), std::invalid_argument);  // between two layers
  f.cache.append(1, id, chunk, chunk);
  f.cache.drop(f.cache.fork(id));
  f.cache.drop(id);
  EXPECT_THROW(f.cache.fork(id), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Modes, Fork, testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

TEST(ForkTruncated, LeavesTheTokensOfItsParent) {
  const auto rows = stream(600), others = stream(600, 5);
  for (const char* spec : {"fp16", "fp32,block=64", "k=fp16,v=bf16,block=128", "nuq4,sink=8"}) {
    const int64_t length = std::string(spec) == "nuq4,sink=8" ? 60 : 300;
    for (const int64_t left : {0, 5, 50}) {
      SCOPED_TRACE(testing::Message() << spec << ", back to " << left);
      FedCache f(spec, CacheMode::kAsServed), fresh(spec, CacheMode::kAsServed);
      const auto id = f.cache.add_sequence();
      f.append(id, rows, 0, length);
      const auto fork = f.cache.fork(id);
      const auto expected = f.contents(id);
      f.cache.truncate(fork, left);
      f.append(fork, others, 0, 100);
      EXPECT_EQ(f.contents(id), expected);
      const auto other = fresh.cache.add_sequence();
      if (left > 0) fresh.append(other, rows, 0, left);
      fresh.append(other, others, 0, 100);
      EXPECT_EQ(f.contents(fork), fresh.contents(other));
    }
  }
}

}  // namespace
}  // namespace kvquant
