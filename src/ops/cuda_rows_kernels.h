// The kernels of cuda_rows.h: a row a block.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_numbers.h"
#include "ops/cuda_rows.h"

namespace kvquant {

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaNorm& call) {
  auto* sums = reinterpret_cast<float*>(block.shared());  // of the warps
  const int64_t row = block.index() / call.num_parts;
  const int64_t column = block.index() % call.num_parts * call.width;
  const float* x = call.x + row * call.x_stride + column;
  float* out = call.out + row * call.out_stride + column;
  block.warp_phase([&](const auto& warp) {
    typename Block::template Lanes<float> squares;
    warp.each([&](int lane) {
      float sum = 0;
      for (int64_t i = warp.index() * kWarpThreads + lane; i < call.width; i += kBlockThreads) {
        sum = std::fma(x[i], x[i], sum);
      }
      squares[lane] = sum;
    });
    const float total = warp.sum(squares);
    warp.each([&](int lane) {
      if (lane == 0) sums[warp.index()] = total;
    });
  });
  block.phase([&](int thread) {
    const float total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    const float factor = 1.0f / std::sqrt(total / static_cast<float>(call.width) + call.eps);
    for (int64_t i = thread; i < call.width; i += kBlockThreads) {
      const float scaled = x[i] * factor;
      out[i] = scaled * call.weight[i];
    }
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaRope& call) {
  const int64_t half = call.head_dim / 2;
  const int64_t first = call.positions[block.index()] * half;
  float* row = call.x + block.index() * call.stride;
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.num_heads * half; i += kBlockThreads) {
      const int64_t c = i % half;
      float* x = row + i / half * call.head_dim + c;
      const float a = x[0], b = x[half], cos = call.cos[first + c], sin = call.sin[first + c];
      x[0] = std::fma(a, cos, -(b * sin));
      x[half] = std::fma(b, cos, a * sin);
    }
  });
}

// Beyond 88 exp overflows; there silu is zero to f32's precision anyway.
KVQUANT_DEVICE float silu(float x) { return x / (1.0f + std::exp(std::fmin(-x, 88.0f))); }

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaGate& call) {
  const int64_t from = block.index() * call.stride, to = block.index() * call.out_stride;
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) {
      call.out[to + i] = silu(call.gate[from + i]) * call.up[from + i];
    }
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaAdd& call) {
  const int64_t from = block.index() * call.x_stride, to = block.index() * call.out_stride;
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) {
      call.out[to + i] += call.x[from + i];
    }
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaEmbed& call) {
  const int64_t from = int64_t{call.tokens[block.index()]} * call.width;
  float* out = call.out + block.index() * call.width;
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) {
      out[i] = call.table != nullptr ? call.table[from + i] : widen(call.bf16_table[from + i]);
    }
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaFinite& call) {
  auto* are_finite = reinterpret_cast<int32_t*>(block.shared());
  const float* x = call.x + block.index() * call.stride;
  block.phase([&](int thread) {
    bool all = true;
    for (int64_t i = thread; i < call.width; i += kBlockThreads) all &= x[i] - x[i] == 0;
    are_finite[thread] = all ? 1 : 0;
  });
  block.phase([&](int thread) {
    if (thread != 0) return;
    int32_t all = 1;
    for (int i = 0; i < kBlockThreads; ++i) all &= are_finite[i];
    call.out[block.index()] = all;
  });
}

// Whether x at `index` comes before what is best so far; index -1: nothing is.
KVQUANT_DEVICE bool comes_first(float x, int32_t index, float best, int32_t best_index) {
  return best_index < 0 || x > best || (x == best && index < best_index);
}

}  // namespace kvquant
