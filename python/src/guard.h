// One thread at a time: engine objects are not thread-safe, and long calls release the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "base/progress.h"

namespace kvquant::python {

class Guard {
 public:
  // Runs fn without the GIL, when no other thread runs anything under this guard. Throws
  // std::runtime_error when called from inside such an fn, that is from a callback: waiting would
  // never end.
  template <class Fn>
  decltype(auto) run(Fn&& fn) {
    if (owner_.load() == std::this_thread::get_id()) {
      throw std::runtime_error("this object is in use by the call that this callback belongs to");
    }
    const nanobind::gil_scoped_release released;
    const std::lock_guard lock(mutex_);
    const Ownership ownership(owner_);
    return fn();
  }

 private:
  struct Ownership {
    explicit Ownership(std::atomic<std::thread::id>& owner) : owner(owner) {
      owner.store(std::this_thread::get_id());
    }
    ~Ownership() { owner.store({}); }
    std::atomic<std::thread::id>& owner;
  };

  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
};

// For calls under a guard: stops them when Ctrl-C was pressed.
inline void check_interrupt(int64_t, int64_t) {
  const nanobind::gil_scoped_acquire acquired;
  if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
}

}  // namespace kvquant::python
