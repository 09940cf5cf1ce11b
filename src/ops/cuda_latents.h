// Rows as latents (latent.h) on a device, to the bit as on the CPU: the parameters of the kernel
// and its body. All pointers are addresses of the device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_fragments.h"

namespace kvquant {

// A LatentMap; A is transposed, so that the threads of a warp read neighbours.
struct CudaLatentMap {
  int64_t rank = 0;
  int64_t width = 0;
  int64_t head_dim = 0;
  const float* mean = nullptr;    // [head_dim]
  const float* encode = nullptr;  // [head_dim, rank]
};

struct CudaEncodeLatents {
  static constexpr int64_t kRows = 8;  // of a block, which reads A once for them

  const float* rows = nullptr;          // [num_rows, num_heads * head_dim], without gaps
  const CudaLatentMap* maps = nullptr;  // [num_heads], alike but for mean and A
  float* latents = nullptr;             // [num_rows, num_heads * width]
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;

  int64_t num_blocks() const { return (num_rows + kRows - 1) / kRows * num_heads; }
  int64_t shared_bytes() const { return kRows * head_dim * 4; }
  bool operator==(const CudaEncodeLatents&) const = default;
};

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaEncodeLatents& call) {
  constexpr int64_t kRows = CudaEncodeLatents::kRows;
  const int64_t head = block.index() % call.num_heads;
  const int64_t first = block.index() / call.num_heads * kRows;
  const int64_t left = call.num_rows - first, count = left < kRows ? left : kRows;
  const CudaLatentMap& map = call.maps[head];
  const int64_t head_dim = call.head_dim, stride = call.num_heads * head_dim;
  const float* rows = call.rows + first * stride + head * head_dim;
  auto* centred = reinterpret_cast<float*>(block.shared());  // [head_dim][kRows]
  block.phase([&](int thread) {
    for (int64_t i = thread; i < kRows * head_dim; i += kBlockThreads) {
      const int64_t row = i / head_dim, c = i % head_dim;
      centred[c * kRows + row] = row < count ? rows[row * stride + c] - map.mean[c] : 0.0f;
    }
  });
  block.phase([&](int thread) {
    for (int64_t r = thread; r < map.width; r += kBlockThreads) {
      float sums[kRows] = {};
      for (int64_t c = 0; c < head_dim && r < map.rank; ++c) {
        const float a = map.encode[c * map.rank + r];
        for (int64_t i = 0; i < kRows; ++i) sums[i] = std::fma(a, centred[c * kRows + i], sums[i]);
      }
      for (int64_t i = 0; i < count; ++i) {
        call.latents[((first + i) * call.num_heads + head) * map.width + r] = sums[i];
      }
    }
  });
}

}  // namespace kvquant
