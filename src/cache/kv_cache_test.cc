// What attention reads through the views of a KvCache, against the model of plain vectors.
#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include "cache/kv_cache_test_pair.h"

namespace kvquant {
namespace {

using test::Pair;

class KvCacheViews : public testing::TestWithParam<CacheMode> {};

TEST_P(KvCacheViews, ShowEveryTokenOnceInTheRightForm) {
  for (const char* spec : test::kSpecs) {
    SCOPED_TRACE(spec);
    Pair pair({2, 2, 16}, spec, GetParam());
    const auto id = pair.add();
    for (const int64_t num_new : {1, 2, 63, 64, 1, 200, 1, 1, 129}) {
      ASSERT_NO_FATAL_FAILURE(pair.append_and_check(id, num_new));
    }
  }
}

TEST_P(KvCacheViews, HoldForWideAndNarrowHeads) {
  for (const int64_t head_dim : {8, 64, 80, 256}) {
    Pair pair({1, 3, head_dim}, "nuq3-5%,recent=5", GetParam());
    const auto id = pair.add();
    for (const int64_t num_new : {150, 1, 70}) {
      ASSERT_NO_FATAL_FAILURE(pair.append_and_check(id, num_new));
    }
  }
}

TEST_P(KvCacheViews, HoldForWideAndNarrowRotatedHeads) {
  for (const int64_t head_dim : {8, 64, 256}) {
    Pair pair({1, 3, head_dim}, "k=int4,v=had+nuq3-5%,recent=5", GetParam());
    const auto id = pair.add();
    for (const int64_t num_new : {150, 1, 70}) {
      ASSERT_NO_FATAL_FAILURE(pair.append_and_check(id, num_new));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, KvCacheViews,
                         testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

}  // namespace
}  // namespace kvquant
