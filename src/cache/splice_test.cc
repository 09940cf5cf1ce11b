// Encoded tiles of one sequence within another, at other positions.
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_feed.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::kFedShape;
using test::Row;
using test::stream;

constexpr int64_t kHeadDim = 16;

struct Token {
  Row key, value;  // keys before RoPE
};

// Token t of one head of the last layer, as it is read.
Token token_at(FedCache& f, KvCache::SequenceId id, int64_t position, int64_t head) {
  f.cache.prepare_view(kFedShape.num_layers - 1, id);
  for (const AttendRun& run : f.cache.view(kFedShape.num_layers - 1, id, head)) {
    const int64_t t = position - run.first_position;
    if (t < 0 || t >= run.num_tokens) continue;
    Token token{test::key_in_run(run, t, kHeadDim), test::value_in_run(run, t, kHeadDim)};
    for (int64_t c = 0; c < kHeadDim / 2; ++c) {  // back
      const float a = token.key[c], b = token.key[c + kHeadDim / 2];
      const float cos = f.rope.cos(position)[c], sin = f.rope.sin(position)[c];
      token.key[c] = a * cos + b * sin;
      token.key[c + kHeadDim / 2] = b * cos - a * sin;
    }
    return token;
  }
  ADD_FAILURE() << "no token at " << position;
  return {};
}

void expect_same_tokens(FedCache& f, KvCache::SequenceId a, int64_t first_a, KvCache::SequenceId b,
                        int64_t first_b, int64_t count) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t head = 0; head < kFedShape.num_kv_heads; ++head) {
      const Token x = token_at(f, a, first_a + t, head), y = token_at(f, b, first_b + t, head);
      ASSERT_EQ(x.value, y.value) << "token " << t;
      for (int64_t c = 0; c < kHeadDim; ++c) {
        ASSERT_NEAR(x.key[c], y.key[c], 1e-4 * (1 + std::abs(y.key[c]))) << "token " << t;
      }
    }
  }
}

constexpr const char* kSpecs[] = {"nuq4,block=64,sink=4", "nuq3-2%,block=128,sink=4",
                                  "k=int8,v=had+nuq2-5%,block=256,sink=4"};

class Splice : public testing::TestWithParam<CacheMode> {};

TEST_P(Splice, PutsEncodedTokensAtTheEndOfAnotherSequence) {
  const auto rows = stream(600), others = stream(600, 5);
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    FedCache f(spec, GetParam());
    const auto document = f.cache.add_sequence();
    f.append(document, rows, 0, 500);
    f.append(document, rows, 500, 1);
    const auto id = f.cache.add_sequence();
    f.append(id, others, 0, 4);
    f.cache.splice(id, document, 4 + 128, 192);
    f.cache.splice(id, document, 4, 128);
    f.cache.splice(id, id, 4 + 64, 64);
    EXPECT_EQ(f.cache.length(id), 4 + 192 + 128 + 64);
    f.append(id, others, 4, 30);
    f.append(id, others, 34, 1);
    expect_same_tokens(f, id, 4, document, 4 + 128, 192);
    expect_same_tokens(f, id, 4 + 192, document, 4, 128);
    expect_same_tokens(f, id, 4 + 192 + 128, document, 4 + 192, 64);
    const auto before = f.contents(id);
    f.cache.drop(document);
    EXPECT_EQ(f.contents(id), before);
  }
}

TEST_P(Splice, TakesTilesOfSequencesWithOtherKeyRanges) {
  auto rows = stream(600), others = stream(600, 5);
  for (auto& row : others) {
    for (float& x : row) x *= 4;
  }
  for (const char* spec : kSpecs) {
    SCOPED_TRACE(spec);
    FedCache f(spec, GetParam());
    const auto document = f.cache.add_sequence(), other = f.cache.add_sequence();
    f.append(document, rows, 0, 400);
    f.append(document, rows, 400, 1);
    f.append(other, others, 0, 400);
    f.append(other, others, 400, 1);
    const auto id = f.cache.add_sequence();
    f.append(id, rows, 0, 4);
    f.cache.splice(id, document, 4 + 64, 128);
    f.cache.splice(id, other, 4, 192);
    f.cache.splice(id, document, 4, 64);
    f.append(id, rows, 4, 30);
    expect_same_tokens(f, id, 4, document, 4 + 64, 128);
    expect_same_tokens(f, id, 4 + 128, other, 4, 192);
    expect_same_tokens(f, id, 4 + 128 + 192, document, 4, 64);
  }
}

TEST(SpliceMemory, SharesWholeBlocksWithoutOutliers) {
  FedCache f("nuq4,block=64,sink=0", CacheMode::kStrict);
  const int64_t empty = f.cache.memory_bytes();
  const auto document = f.cache.add_sequence();
  f.append(document, stream(512), 0, 512);
  f.cache.settle(document);
  const int64_t bytes = f.cache.memory_bytes();
  const auto id = f.cache.add_sequence();
  f.cache.splice(id, document, 64, 448);
  const int64_t key_ranges = 2 * 2 * 2 * test::kFedRowSize;
  EXPECT_EQ(f.cache.memory_bytes() - bytes, 2 * 2 * 7 * 8 + key_ranges);  // and tables
  f.cache.drop(document);
  f.cache.drop(id);
  EXPECT_EQ(f.cache.memory_bytes(), empty);
}

TEST_P(Splice, IsRefusedWithTheReason) {
  const auto rows = stream(600);
  FedCache f("nuq4,sink=4", GetParam());
  const auto document = f.cache.add_sequence();
  const auto id = f.cache.add_sequence(), begun = f.cache.add_sequence();
  f.append(document, rows, 0, 300);
  f.append(document, rows, 300, 1);
  f.append(id, rows, 0, 4);
  f.append(begun, rows, 0, 5);
  const auto refused = [](FedCache& cache, KvCache::SequenceId to, KvCache::SequenceId from,
                          int64_t first, int64_t count, const char* reason) {
    const int64_t length = cache.cache.length(to);
    try {
      cache.cache.splice(to, from, first, count);
      ADD_FAILURE() << reason;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    }
    EXPECT_EQ(cache.cache.length(to), length);
  };
  for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
           {4, 0}, {4, -64}, {4, 63}, {5, 64}, {0, 64}, {4, 640}, {-60, 64}, {4 + 640, 64}}) {
    refused(f, id, document, first, count, "are not whole encoded tiles of 64 within [4, ");
  }
  refused(f, begun, document, 4, 64, "but it has 5");
  refused(f, id, 99, 4, 64, "no sequence 99");
  FedCache mixed("k=nuq4,v=fp16", GetParam());
  mixed.append(mixed.cache.add_sequence(), rows, 0, 300);
  refused(mixed, mixed.cache.add_sequence(), 0, 4, 64, "must both be compressed");
  FedCache window("nuq4,sink=0,recent=10", CacheMode::kStrict);
  window.append(window.cache.add_sequence(), rows, 0, 300);
  refused(window, window.cache.add_sequence(), 0, 0, 64, "recent=");
}

TEST_P(Splice, ThatRunsOutOfMemoryEndsItsSequenceOnly) {
  FedCache f("nuq4-1%,block=64,sink=4", GetParam());
  const auto rows = stream(600);
  const auto document = f.cache.add_sequence(), id = f.cache.add_sequence();
  f.append(document, rows, 0, 500);
  f.append(document, rows, 500, 1);
  f.append(id, rows, 0, 4);
  f.cache.settle(document);
  const auto expected = f.contents(document);
  f.cache.set_max_bytes(1);
  EXPECT_THROW(f.cache.splice(id, document, 4, 256), OutOfMemory);
  EXPECT_EQ(f.cache.length(id), 4);
  f.cache.drop(id);
  EXPECT_EQ(f.contents(document), expected);
}

INSTANTIATE_TEST_SUITE_P(Modes, Splice, testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

}  // namespace
}  // namespace kvquant
