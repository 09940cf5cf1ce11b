// A block of threads of a CUDA kernel, the real one; cuda_block.h says what a body may do.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_fragments.h"

namespace kvquant::cuda {

// One value for each of a warp's threads: the own one.
template <class T>
struct Lanes {
  T value = {};
  KVQUANT_DEVICE T& operator[](int) { return value; }
  KVQUANT_DEVICE const T& operator[](int) const { return value; }
};

class Warp {
 public:
  template <class T>
  using Lanes = cuda::Lanes<T>;

  KVQUANT_DEVICE int index() const { return static_cast<int>(threadIdx.x) / kWarpThreads; }

  template <class Fn>
  KVQUANT_DEVICE void each(Fn&& fn) const {
    fn(static_cast<int>(threadIdx.x) % kWarpThreads);
  }

  template <class Fn>
  KVQUANT_DEVICE void phase(Fn&& fn) const {
    each(fn);
    __syncwarp();
  }

  template <class T>
  KVQUANT_DEVICE Lanes<T> exchange(const Lanes<T>& x, int mask) const {
    return {__shfl_xor_sync(0xFFFFFFFFu, x.value, mask)};
  }

  KVQUANT_DEVICE void add(int32_t* sum, int32_t x) const { atomicAdd(sum, x); }

  KVQUANT_DEVICE float max(Lanes<float> x) const {
    KVQUANT_UNROLL
    for (int step = kWarpThreads / 2; step > 0; step /= 2) {
      x.value = fmaxf(x.value, __shfl_xor_sync(0xFFFFFFFFu, x.value, step));
    }
    return x.value;
  }
  KVQUANT_DEVICE float sum(Lanes<float> x) const {
    KVQUANT_UNROLL
    for (int step = kWarpThreads / 2; step > 0; step /= 2) {
      x.value += __shfl_xor_sync(0xFFFFFFFFu, x.value, step);
    }
    return x.value;
  }

  KVQUANT_DEVICE void multiply(const Lanes<FragmentA>& a, const Lanes<FragmentB>& b,
                               Lanes<FragmentC>& c) const {
    float* sums = c.value.sums;
    const uint32_t* left = a.value.pairs;
    const uint32_t* right = b.value.pairs;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
  KVQUANT_DEVICE void multiply_halves(const Lanes<FragmentA>& a, const Lanes<FragmentB>& b,
                                      Lanes<FragmentC>& c) const {
    float* sums = c.value.sums;
    const uint32_t* left = a.value.pairs;
    const uint32_t* right = b.value.pairs;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
};

class Block {
 public:
  template <class T>
  struct PerWarp {
    T value = {};
    KVQUANT_DEVICE T& operator[](const Warp&) { return value; }
  };
  template <class T>
  using Lanes = cuda::Lanes<T>;

  KVQUANT_DEVICE explicit Block(std::byte* shared) : shared_(shared) {}

  KVQUANT_DEVICE int64_t index() const { return blockIdx.x; }
  KVQUANT_DEVICE std::byte* shared() const { return shared_; }

  template <class Fn>
  KVQUANT_DEVICE void each(Fn&& fn) const {
    fn(static_cast<int>(threadIdx.x));
  }
  template <class Fn>
  KVQUANT_DEVICE void phase(Fn&& fn) const {
    each(fn);
    __syncthreads();
  }
  template <class Fn>
  KVQUANT_DEVICE void warp_phase(Fn&& fn) const {
    fn(Warp());
    __syncthreads();
  }

  KVQUANT_DEVICE void copy_ahead(std::byte* to, const std::byte* from) const {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  }
  KVQUANT_DEVICE void await_copies() const { asm volatile("cp.async.wait_all;" ::: "memory"); }

 private:
  std::byte* shared_;
};

}  // namespace kvquant::cuda
