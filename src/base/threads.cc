#include "base/threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace kvquant {
namespace {

// Workers spin this many times before they sleep: long enough to bridge the gap between two ops of
// one layer, short enough not to burn a core while nothing runs (about 50 us on Zen 4).
constexpr int kSpins = 4000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

std::vector<int> read_affinity() {
  std::vector<int> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) cores.push_back(i);
    }
  }
  if (cores.empty()) cores.push_back(0);
  return cores;
}

// Read once: a pool pins the calling thread, and the next pool must still see all cores.
const std::vector<int>& available_cores() {
  static const std::vector<int> cores = read_affinity();
  return cores;
}

void pin_to(pthread_t thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(thread, sizeof set, &set);  // a hint: failure changes speed only
}

}  // namespace

int num_available_cores() { return static_cast<int>(available_cores().size()); }

void unpin_calling_thread() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : available_cores()) CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);  // a hint, too
}

// What threads spin on has a cache line of its own, so that taking a task never waits for it.
struct ThreadPool::State {
  // One parallel loop. `generation` is bumped (release) after the rest is set.
  alignas(64) std::atomic<uint64_t> generation{0};
  Task task = nullptr;
  void* context = nullptr;
  int64_t num_tasks = 0;
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> running{0};  // workers that have not finished this loop
  alignas(64) std::mutex mutex;
  std::condition_variable wake;
  std::atomic<int> sleeping{0};  // changed under mutex
  std::vector<std::thread> threads;

  void work(int worker) {
    for (int64_t i = next.fetch_add(1); i < num_tasks; i = next.fetch_add(1)) {
      task(context, i, worker);
    }
  }

  uint64_t wait_for_next(uint64_t seen) {
    for (int i = 0; i < kSpins; ++i) {
      if (generation.load(std::memory_order_acquire) != seen) return generation.load();
      pause_cpu();
    }
    std::unique_lock lock(mutex);
    sleeping.fetch_add(1);
    wake.wait(lock, [&] { return generation.load() != seen; });
    sleeping.fetch_sub(1);
    return generation.load();
  }

  void loop(int worker) {
    omp_set_num_threads(1);
    uint64_t seen = 0;
    while (true) {
      seen = wait_for_next(seen);
      if (stop.load()) return;
      work(worker);
      running.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  // Without the mutex as long as nobody sleeps. Both sides write before they read, in one order for
  // all (seq_cst): either a worker that is about to sleep counts here, or it sees the generation.
  void start_generation() {
    generation.fetch_add(1);
    if (sleeping.load() == 0) return;
    { const std::lock_guard lock(mutex); }  // a worker that counts waits, or looks again
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int num_threads, Pin pin) : state_(std::make_unique<State>()) {
  const auto& cores = available_cores();
  const int count = num_threads > 0 ? num_threads : static_cast<int>(cores.size());
  const bool pins = pin == Pin::kYes && count > 1 && count <= static_cast<int>(cores.size());
  if (pin == Pin::kYes) omp_set_num_threads(1);
  for (int i = 1; i < count; ++i) {
    state_->threads.emplace_back([state = state_.get(), i] { state->loop(i); });
    if (pins) pin_to(state_->threads.back().native_handle(), cores[i]);
  }
  if (pins) pin_to(pthread_self(), cores[0]);
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true);
  state_->start_generation();
  for (auto& thread : state_->threads) thread.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run(int64_t num_tasks, Task task, void* context) {
  State& state = *state_;
  if (num_tasks <= 1 || state.threads.empty()) {
    for (int64_t i = 0; i < num_tasks; ++i) task(context, i, 0);
    return;
  }
  state.task = task;
  state.context = context;
  state.num_tasks = num_tasks;
  state.next.store(0);
  state.running.store(static_cast<int>(state.threads.size()));
  state.start_generation();
  state.work(0);
  while (state.running.load(std::memory_order_acquire) > 0) pause_cpu();
}

}  // namespace kvquant
