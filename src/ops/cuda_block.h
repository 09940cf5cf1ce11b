// A block of threads of a CUDA kernel, played by one CPU thread: what tests run where there is no
// GPU. Kernel bodies are templates over the block; cuda_block.cuh is the real one.
//
// A body is a sequence of phases, each a function of a thread or of a warp; a barrier ends a phase,
// so none can be forgotten. Within a phase threads may not read what others write; running threads
// backwards gives other results if they do. What a thread keeps beyond a phase is a PerWarp or in
// shared memory; all else of a body is the same for all threads.
//
// Copies to shared memory go on while threads do other things: they have arrived once every thread
// has awaited its own and a barrier has been passed, here not before.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "ops/cuda_fragments.h"

namespace kvquant::emulated {

enum class ThreadOrder { kForward, kBackward };

// One value for each of a warp's threads.
template <class T>
struct Lanes {
  T values[kWarpThreads] = {};
  T& operator[](int lane) { return values[lane]; }
  const T& operator[](int lane) const { return values[lane]; }
};

class Warp {
 public:
  template <class T>
  using Lanes = emulated::Lanes<T>;

  Warp(int index, ThreadOrder order) : index_(index), order_(order) {}

  int index() const { return index_; }

  // fn(lane) in each thread.
  template <class Fn>
  void each(Fn&& fn) const {
    for (int i = 0; i < kWarpThreads; ++i) {
      fn(order_ == ThreadOrder::kForward ? i : kWarpThreads - 1 - i);
    }
  }

  // The same, and what they wrote to shared memory the warp's threads may read behind it.
  template <class Fn>
  void phase(Fn&& fn) const {
    each(fn);
  }

  // Each thread's value from the thread whose index differs in the bits of `mask`.
  template <class T>
  Lanes<T> exchange(const Lanes<T>& x, int mask) const {
    Lanes<T> out;
    for (int lane = 0; lane < kWarpThreads; ++lane) out[lane] = x[lane ^ mask];
    return out;
  }

  // Of a thread, to a sum in shared memory: whole numbers, which add up alike in any order.
  void add(int32_t* sum, int32_t x) const { *sum += x; }

  // Of all threads, known to all. Sums are those of a butterfly, as on the GPU.
  float max(const Lanes<float>& x) const {
    float largest = x[0];
    for (int lane = 1; lane < kWarpThreads; ++lane) largest = std::fmax(largest, x[lane]);
    return largest;
  }
  float sum(Lanes<float> x) const {
    for (int step = kWarpThreads / 2; step > 0; step /= 2) {
      Lanes<float> next;
      for (int lane = 0; lane < kWarpThreads; ++lane) next[lane] = x[lane] + x[lane ^ step];
      x = next;
    }
    return x[0];
  }

  // sums += a b, matrices of 16 x 16 and 16 x 8 (cuda_fragments.h).
  void multiply(const Lanes<FragmentA>& a, const Lanes<FragmentB>& b,
                Lanes<FragmentC>& sums) const {
    multiply(a, b, sums, [](uint16_t bits) { return to_float(BFloat16{bits}); });
  }
  // The same of halves.
  void multiply_halves(const Lanes<FragmentA>& a, const Lanes<FragmentB>& b,
                       Lanes<FragmentC>& sums) const {
    multiply(a, b, sums, [](uint16_t bits) { return to_float(Half{bits}); });
  }

 private:
  template <class Widen>
  static void multiply(const Lanes<FragmentA>& a, const Lanes<FragmentB>& b, Lanes<FragmentC>& sums,
                       const Widen& widen) {
    const auto half_of = [&](uint32_t pair, int half) {
      return widen(static_cast<uint16_t>(half == 0 ? pair : pair >> 16));
    };
    float left[16][16], right[16][8];
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      for (int i = 0; i < 4; ++i) {
        float* to = &left[lane / 4 + 8 * (i % 2)][lane % 4 * 2 + 8 * (i / 2)];
        to[0] = half_of(a[lane].pairs[i], 0);
        to[1] = half_of(a[lane].pairs[i], 1);
      }
      for (int i = 0; i < 2; ++i) {
        const int k = lane % 4 * 2 + 8 * i;
        right[k][lane / 4] = half_of(b[lane].pairs[i], 0);
        right[k + 1][lane / 4] = half_of(b[lane].pairs[i], 1);
      }
    }
    float product[16][8] = {};
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8; ++column) {
          product[row][column] += left[row][k] * right[k][column];
        }
      }
    }
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      for (int i = 0; i < 4; ++i) {
        sums[lane].sums[i] += product[fragment_row(lane, i)][fragment_column(lane, i)];
      }
    }
  }

  int index_;
  ThreadOrder order_;
};

class Block {
 public:
  // What a warp keeps from phase to phase; holds Lanes.
  template <class T>
  struct PerWarp {
    T values[kBlockWarps] = {};
    T& operator[](const Warp& warp) { return values[warp.index()]; }
  };
  template <class T>
  using Lanes = emulated::Lanes<T>;

  Block(int64_t index, std::byte* shared, ThreadOrder order)
      : index_(index), shared_(shared), order_(order) {}

  int64_t index() const { return index_; }
  std::byte* shared() const { return shared_; }

  // fn(thread) in each thread, no barrier: what it writes nobody may read before the next one.
  template <class Fn>
  void each(Fn&& fn) const {
    for (int i = 0; i < kBlockThreads; ++i) {
      fn(order_ == ThreadOrder::kForward ? i : kBlockThreads - 1 - i);
    }
  }
  // The same, then a barrier.
  template <class Fn>
  void phase(Fn&& fn) const {
    each(fn);
    end_phase();
  }
  // fn(warp) in each warp, then a barrier.
  template <class Fn>
  void warp_phase(Fn&& fn) const {
    for (int i = 0; i < kBlockWarps; ++i) {
      fn(Warp(order_ == ThreadOrder::kForward ? i : kBlockWarps - 1 - i, order_));
    }
    end_phase();
  }

  // Of a thread: asks for 16 bytes of global memory, both addresses being multiples of 16.
  void copy_ahead(std::byte* to, const std::byte* from) const { copies_.push_back({to, from}); }
  void await_copies() const { ++num_waiting_; }

 private:
  struct Copy {
    std::byte* to;
    const std::byte* from;
  };

  void end_phase() const {
    if (num_waiting_ == kBlockThreads) {
      for (const Copy& copy : copies_) std::memcpy(copy.to, copy.from, kCopyBytes);
      copies_.clear();
    }
    num_waiting_ = 0;
  }

  mutable std::vector<Copy> copies_;  // under way
  mutable int num_waiting_ = 0;       // threads that await them in this phase
  int64_t index_;
  std::byte* shared_;
  ThreadOrder order_;
};

}  // namespace kvquant::emulated
