// Numbers as kernels convert and store them: by single instructions on the GPU, by half.h
// elsewhere, with the same results.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/device_code.h"
#include "base/half.h"
#include "formats/dense_tile.h"

namespace kvquant {

KVQUANT_DEVICE float widen(Half x) {
#ifdef __CUDA_ARCH__
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
#else
  return to_float(x);
#endif
}
KVQUANT_DEVICE float widen(BFloat16 x) { return to_float(x); }
KVQUANT_DEVICE float widen(float x) { return x; }

// Two neighbours along the sum of a product, the first in the lower half.
struct Bf16Pair {
  uint32_t bits = 0;
};
struct FloatPair {
  float first = 0;
  float second = 0;
};

KVQUANT_DEVICE void set_pair(Bf16Pair& pair, float first, float second) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair.bits) : "f"(second), "f"(first));
#else
  pair.bits = to_bfloat16(first).bits | uint32_t{to_bfloat16(second).bits} << 16;
#endif
}
KVQUANT_DEVICE void set_pair(FloatPair& pair, float first, float second) {
  pair.first = first;
  pair.second = second;
}

KVQUANT_DEVICE FloatPair widen(Bf16Pair pair) {
  return {widen(BFloat16{static_cast<uint16_t>(pair.bits)}),
          widen(BFloat16{static_cast<uint16_t>(pair.bits >> 16)})};
}
KVQUANT_DEVICE FloatPair widen(FloatPair pair) { return pair; }

// One half of a pair; the other one may be written by another thread meanwhile.
KVQUANT_DEVICE void set_half(Bf16Pair& pair, int half, float x) {
  const BFloat16 rounded = to_bfloat16(x);
  std::memcpy(reinterpret_cast<char*>(&pair) + 2 * half, &rounded, sizeof rounded);
}
KVQUANT_DEVICE void set_half(FloatPair& pair, int half, float x) {
  std::memcpy(reinterpret_cast<char*>(&pair) + 4 * half, &x, sizeof x);
}

KVQUANT_DEVICE float dense_number(const void* tile, DenseType type, int64_t index) {
  if (type == DenseType::kF32) return static_cast<const float*>(tile)[index];
  if (type == DenseType::kBF16) return widen(static_cast<const BFloat16*>(tile)[index]);
  return widen(static_cast<const Half*>(tile)[index]);
}

// Elements index and index + 1 of a dense tile.
KVQUANT_DEVICE FloatPair dense_pair(const void* tile, DenseType type, int64_t index) {
  if (type == DenseType::kF32) {
    const auto* numbers = static_cast<const float*>(tile) + index;
    return {numbers[0], numbers[1]};
  }
  const uint32_t bits = static_cast<const uint32_t*>(tile)[index / 2];
  const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits >> 16);
  if (type == DenseType::kBF16) return {widen(BFloat16{low}), widen(BFloat16{high})};
  return {widen(Half{low}), widen(Half{high})};
}

}  // namespace kvquant
