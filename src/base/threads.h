// A fixed pool of threads for short parallel loops. Work is cut into tasks whose boundaries never
// depend on the number of threads, so results don't either: only who runs a task varies.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace kvquant {

// Each worker thread calls omp_set_num_threads(1) at its start, so that oneDNN primitives run
// single-threaded on it.
class ThreadPool {
 public:
  // `num_threads` workers counting the calling thread; 0 means one for each core the process may
  // use. Pin::kYes: worker i stays on the i-th of those cores, and the calling thread, the first of
  // them, runs OpenMP code single-threaded from now on. kNo leaves the calling thread as it is: for
  // pools in a process that isn't ours.
  enum class Pin { kNo, kYes };
  explicit ThreadPool(int num_threads = 0, Pin pin = Pin::kYes);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls fn(task, worker) for every task in [0, num_tasks), worker in [0, num_threads()). Returns
  // when all are done; what they wrote is visible to the caller. fn must not throw, nor call
  // parallel_for of the same pool. One caller at a time.
  template <class Fn>
  void parallel_for(int64_t num_tasks, Fn&& fn) {
    auto* target = std::addressof(fn);
    run(
        num_tasks,
        [](void* f, int64_t task, int worker) {
          (*static_cast<decltype(target)>(f))(task, worker);
        },
        const_cast<void*>(static_cast<const void*>(target)));
  }

 private:
  using Task = void (*)(void* context, int64_t task, int worker);
  void run(int64_t num_tasks, Task task, void* context);

  struct State;
  std::unique_ptr<State> state_;
};

// Cores this process may run on (its affinity mask).
int num_available_cores();

// Lets the calling thread, which a pool may have pinned to one core, run on all of these: a process
// that it starts inherits where it may run. Safe between fork and exec.
void unpin_calling_thread() noexcept;

}  // namespace kvquant
