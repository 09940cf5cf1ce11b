#include "base/threads.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <vector>

namespace kvquant {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int num_threads : {1, 2, 4}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int64_t num_tasks : {0, 1, 2, 3, 1000}) {
      std::vector<int> counts(num_tasks, 0);
      pool.parallel_for(num_tasks, [&](int64_t task, int worker) {
        EXPECT_LT(worker, num_threads);
        ++counts[task];  // each task is its own element: no race
      });
      EXPECT_EQ(counts, std::vector<int>(num_tasks, 1));
    }
  }
}

TEST(ThreadPool, ManyShortLoopsInARow) {
  ThreadPool pool(2);
  int64_t sum = 0;
  for (int i = 0; i < 5000; ++i) {
    int64_t parts[4] = {};
    pool.parallel_for(4, [&](int64_t task, int) { parts[task] = task + i; });
    for (const int64_t part : parts) sum += part;
  }
  EXPECT_EQ(sum, 4 * (5000LL * 4999 / 2) + 6 * 5000);
}

TEST(ThreadPool, ZeroMeansAllAvailableCores) {
  ThreadPool pool(0);
  EXPECT_EQ(pool.num_threads(), num_available_cores());
}

TEST(ThreadPool, WhatPinnedTheCallingThreadCanBeUndone) {
  const auto cores_of_thread = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    return CPU_COUNT(&set);
  };
  ThreadPool pool(0, ThreadPool::Pin::kYes);
  EXPECT_EQ(cores_of_thread(), 1);
  unpin_calling_thread();
  EXPECT_EQ(cores_of_thread(), num_available_cores());
}

}  // namespace
}  // namespace kvquant
