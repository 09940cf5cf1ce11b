// ThreadPool::parallel_for for tasks that may throw.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

#include "base/threads.h"

namespace kvquant {

// Runs all tasks, also when one throws; then throws what the first task (by number) threw.
template <class Fn>
void parallel_for_throwing(ThreadPool& pool, int64_t num_tasks, const Fn& fn) {
  std::mutex mutex;
  std::exception_ptr error;
  int64_t error_task = num_tasks;
  pool.parallel_for(num_tasks, [&](int64_t task, int worker) {
    try {
      fn(task, worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (task < error_task) {
        error = std::current_exception();
        error_task = task;
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace kvquant
