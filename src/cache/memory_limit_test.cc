// A cache whose memory is limited: what fails, what stays.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_feed.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::FedCache;
using test::stream;

constexpr const char* kSpecs[] = {"fp16,block=64",
                                  "nuq4,block=64",
                                  "nuq3-2%,block=128,sink=20,recent=100",
                                  "k=nuq2-5%,v=fp16,block=64",
                                  "k=int8,v=had+nuq4-1%,layers=1:bf16,block=64",
                                  "k=lnns+nuq3-2%,v=bf16,sink=3,block=64"};

class MemoryLimit : public testing::TestWithParam<CacheMode> {};

// Limits from nothing to enough, so that every kind of allocation fails once.
TEST_P(MemoryLimit, StopsOneSequenceAndSparesTheOthers) {
  const auto rows = stream(400), others = stream(400, 5);
  for (const char* spec : kSpecs) {
    FedCache f(spec, GetParam());
    const int64_t empty = f.cache.memory_bytes();
    const auto spared = f.cache.add_sequence();
    f.append(spared, others, 0, 149);
    f.append(spared, others, 149, 1);
    f.cache.settle(spared);
    const auto expected = f.contents(spared);
    const int64_t before = f.cache.memory_bytes();
    const auto measured = f.cache.fork(spared);
    for (int64_t first = 0; first < 400; first += 40) f.append(measured, rows, first, 40);
    f.cache.settle(measured);
    const int64_t needed = f.cache.memory_bytes() - before;
    f.cache.drop(measured);
    int num_failed = 0;
    for (int64_t limit = before + 1; limit < before + needed; limit += needed / 60) {
      SCOPED_TRACE(testing::Message() << spec << ", limit " << limit);
      const auto id = f.cache.fork(spared);
      f.cache.set_max_bytes(limit);
      int64_t length = f.cache.length(id);
      try {
        for (int64_t first = 0; first < 400; first += 40) {
          f.append(id, rows, first, 40);
          length += 40;
        }
        f.cache.settle(id);
      } catch (const OutOfMemory& error) {
        ++num_failed;
        const std::string limit_text = "the limit of " + std::to_string(limit) + " bytes";
        EXPECT_NE(std::string(error.what()).find(limit_text), std::string::npos) << error.what();
        EXPECT_EQ(f.cache.length(id), length);
        EXPECT_THROW(f.append(id, rows, 0, 1), std::invalid_argument);
        EXPECT_THROW(f.cache.fork(id), std::invalid_argument);
        EXPECT_THROW(f.cache.settle(id), std::invalid_argument);
        EXPECT_THROW(f.cache.truncate(id, length), std::invalid_argument);
        EXPECT_THROW(f.cache.prepare_view(0, id), std::invalid_argument);
      }
      ASSERT_EQ(f.contents(spared), expected);
      f.cache.drop(id);
      f.cache.set_max_bytes(0);
      ASSERT_EQ(f.cache.memory_bytes(), before);
    }
    EXPECT_GT(num_failed, 50) << spec;
    f.append(spared, others, 150, 250);
    f.cache.drop(spared);
    EXPECT_EQ(f.cache.memory_bytes(), empty);
  }
}

TEST_P(MemoryLimit, LetsAnotherGoOnOnceThereIsRoom) {
  const auto rows = stream(400);
  FedCache f("nuq4-1%,block=64", GetParam());
  const auto a = f.cache.add_sequence(), b = f.cache.add_sequence();
  f.append(a, rows, 0, 200);
  f.append(b, rows, 0, 200);
  f.cache.settle(a);
  f.cache.settle(b);
  f.cache.set_max_bytes(f.cache.memory_bytes());
  EXPECT_THROW(f.append(a, rows, 0, 400), OutOfMemory);
  f.cache.drop(a);
  EXPECT_NO_THROW(f.append(b, rows, 200, 100));
  EXPECT_EQ(f.cache.length(b), 300);
  EXPECT_THROW(f.cache.set_max_bytes(-1), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Modes, MemoryLimit,
                         testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

TEST(MemoryLimitOfTruncation, ChangesNothingWhenACopyFindsNoRoom) {
  const auto rows = stream(400);
  FedCache f("fp16,block=256", CacheMode::kAsServed);
  const auto a = f.cache.add_sequence();
  f.append(a, rows, 0, 200);
  const auto b = f.cache.fork(a);
  const auto expected = f.contents(b);
  f.cache.set_max_bytes(1);
  EXPECT_THROW(f.cache.truncate(b, 100), OutOfMemory);
  EXPECT_EQ(f.contents(b), expected);
  f.cache.truncate(b, 0);    // needs none
  f.cache.truncate(a, 100);  // alone by now
  EXPECT_EQ(f.cache.length(a), 100);
}

}  // namespace
}  // namespace kvquant
