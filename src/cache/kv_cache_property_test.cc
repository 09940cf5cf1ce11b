// Random histories of a KvCache against its model: lengths, views, memory.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdlib>
#include <vector>

#include "cache/kv_cache_test_pair.h"

namespace kvquant {
namespace {

using test::Pair;

enum class Operation { kAdd, kAppend, kFork, kDrop, kTruncate, kSettle, kMeasure };

class History {
 public:
  History(const char* spec, CacheMode mode, int64_t sliding_window)
      : pair_({2, 2, 8, sliding_window}, spec, mode) {}

  void step() {
    constexpr size_t kMostSequences = 5;
    const auto operation = *rc::gen::weightedElement<Operation>({{1, Operation::kAdd},
                                                                 {8, Operation::kAppend},
                                                                 {2, Operation::kFork},
                                                                 {1, Operation::kDrop},
                                                                 {2, Operation::kTruncate},
                                                                 {1, Operation::kSettle},
                                                                 {1, Operation::kMeasure}});
    if (ids_.empty()) ids_.push_back(pair_.add());
    const auto at = *rc::gen::inRange<size_t>(0, ids_.size());
    const auto id = ids_[at];
    const bool is_full = ids_.size() >= kMostSequences;
    switch (operation) {
      case Operation::kAdd:
        if (!is_full) ids_.push_back(pair_.add());
        return;
      case Operation::kAppend:
        return pair_.append_and_check(id, *rc::gen::element(1, 1, 2, 5, 63, 64, 65, 100));
      case Operation::kFork:
        if (!is_full) ids_.push_back(pair_.fork(id));
        return;
      case Operation::kDrop:
        pair_.drop(id);
        ids_.erase(ids_.begin() + static_cast<std::ptrdiff_t>(at));
        return;
      case Operation::kTruncate: return pair_.truncate(id, new_length(pair_.cache().length(id)));
      case Operation::kSettle: return pair_.settle(id);
      case Operation::kMeasure: return pair_.check_memory();
    }
  }

  // All that is left is as it should be, and goes on.
  void finish() {
    pair_.check_memory();
    for (const auto id : ids_) pair_.append_and_check(id, 1);
    pair_.check_memory();
    for (const auto id : ids_) pair_.drop(id);
    pair_.check_memory();
  }

 private:
  static int64_t new_length(int64_t length) {
    const int64_t back = *rc::gen::element<int64_t>(0, 1, 7, 64, 130);
    return *rc::gen::inRange(0, 3) == 0 ? *rc::gen::inRange<int64_t>(0, length + 1) : length - back;
  }

  Pair pair_;
  std::vector<KvCache::SequenceId> ids_;
};

class KvCacheHistory : public testing::TestWithParam<CacheMode> {};

void check_histories(CacheMode mode, const std::vector<int64_t>& sliding_windows) {
  EXPECT_TRUE(rc::check([&] {
    History history(*rc::gen::elementOf(
                        std::vector<const char*>(std::begin(test::kSpecs), std::end(test::kSpecs))),
                    mode, *rc::gen::elementOf(sliding_windows));
    const int num_steps = *rc::gen::inRange(1, 16);
    for (int step = 0; step < num_steps; ++step) {
      history.step();
      RC_ASSERT(!testing::Test::HasFailure());
    }
    history.finish();
    RC_ASSERT(!testing::Test::HasFailure());
  }));
}

TEST_P(KvCacheHistory, FollowsTheModel) {
  setenv("RC_PARAMS", "seed=42 max_success=150", /*overwrite=*/1);
  check_histories(GetParam(), {0});
}

TEST_P(KvCacheHistory, FollowsTheModelInASlidingWindow) {
  setenv("RC_PARAMS", "seed=43 max_success=60", /*overwrite=*/1);
  check_histories(GetParam(), {1, 9, 10, 64, 70, 100, 200});
}

INSTANTIATE_TEST_SUITE_P(Modes, KvCacheHistory,
                         testing::Values(CacheMode::kStrict, CacheMode::kAsServed),
                         [](const auto& info) {
                           return info.param == CacheMode::kStrict ? "Strict" : "AsServed";
                         });

}  // namespace
}  // namespace kvquant
