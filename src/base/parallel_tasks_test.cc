#include "base/parallel_tasks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace kvquant {
namespace {

TEST(ParallelTasks, TheErrorOfTheFirstTaskIsThrownAfterAllHaveRun) {
  for (const int num_threads : {1, 3}) {
    ThreadPool pool(num_threads);
    std::atomic<int> num_run{0};
    try {
      parallel_for_throwing(pool, 100, [&](int64_t task, int) {
        ++num_run;
        if (task % 10 == 7) throw std::runtime_error(std::to_string(task));
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "7");
    }
    EXPECT_EQ(num_run, 100);
  }
}

TEST(ParallelTasks, WithoutErrorsNothingIsThrown) {
  ThreadPool pool(2);
  std::atomic<int64_t> sum{0};
  parallel_for_throwing(pool, 10, [&](int64_t task, int) { sum += task; });
  parallel_for_throwing(pool, 0, [&](int64_t, int) { FAIL(); });
  EXPECT_EQ(sum, 45);
}

}  // namespace
}  // namespace kvquant
