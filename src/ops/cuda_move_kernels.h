// The kernels of cuda_store.h that bring rows to other places and types: a row a block.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_numbers.h"
#include "ops/cuda_store.h"

namespace kvquant {

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaNarrow& call) {
  const CudaNarrowTarget target = call.targets[block.index()];
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) {
      target.to[i] = to_half(target.from[i]);
    }
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaMove& call) {
  const CudaMoveTarget target = call.targets[block.index()];
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) target.to[i] = target.from[i];
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaWiden& call) {
  const int64_t first = block.index() * call.width;
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) {
      call.out[first + i] = widen(call.rows[first + i]);
    }
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaRound& call) {
  const float* row = call.rows + block.index() * call.stride;
  BFloat16* out = call.out + block.index() * call.width;
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.width; i += kBlockThreads) out[i] = to_bfloat16(row[i]);
  });
}

KVQUANT_DEVICE void store_number(std::byte* tile, DenseType type, int64_t place, float x) {
  if (type == DenseType::kF32) reinterpret_cast<float*>(tile)[place] = x;
  if (type == DenseType::kF16) reinterpret_cast<Half*>(tile)[place] = to_half(x);
  if (type == DenseType::kBF16) reinterpret_cast<BFloat16*>(tile)[place] = to_bfloat16(x);
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaDense& call) {
  const CudaDenseTarget& target = call.targets[block.index()];
  const float* row = target.row;
  const int64_t head_dim = call.head_dim, half = head_dim / 2;
  const int64_t tile_bytes = kTileTokens * head_dim * element_bytes(call.type);
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.num_heads * half; i += kBlockThreads) {
      const int64_t head = i / half, c = i % half;
      std::byte* tile = target.tile + head * tile_bytes;
      const float a = row[head * head_dim + c], b = row[head * head_dim + c + half];
      if (target.side == KvSide::kValue) {
        store_number(tile, call.type, value_index(target.token, c, head_dim), a);
        store_number(tile, call.type, value_index(target.token, c + half, head_dim), b);
        continue;
      }
      const bool is_turned = target.cos != nullptr;
      const float cos = is_turned ? target.cos[c] : 1.0f, sin = is_turned ? target.sin[c] : 0.0f;
      store_number(tile, call.type, key_index(target.token, c), std::fma(a, cos, -(b * sin)));
      store_number(tile, call.type, key_index(target.token, c + half), std::fma(b, cos, a * sin));
    }
  });
}

}  // namespace kvquant
