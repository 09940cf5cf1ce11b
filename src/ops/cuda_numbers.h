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

// Two halves, and arithmetic on both at once. On the GPU a result is rounded once, elsewhere to f32
// first.
struct HalfPair {
  uint32_t bits = 0;
};
KVQUANT_DEVICE float low_of(HalfPair x) { return widen(Half{static_cast<uint16_t>(x.bits)}); }
KVQUANT_DEVICE float high_of(HalfPair x) {
  return widen(Half{static_cast<uint16_t>(x.bits >> 16)});
}
KVQUANT_DEVICE HalfPair half_pair(float low, float high) {
#ifdef __CUDA_ARCH__
  HalfPair out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out.bits) : "f"(high), "f"(low));
  return out;
#else
  return {to_half(low).bits | uint32_t{to_half(high).bits} << 16};
#endif
}
// a b + c
KVQUANT_DEVICE HalfPair fused(HalfPair a, HalfPair b, HalfPair c) {
#ifdef __CUDA_ARCH__
  HalfPair out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out.bits) : "r"(a.bits), "r"(b.bits), "r"(c.bits));
  return out;
#else
  return half_pair(std::fma(low_of(a), low_of(b), low_of(c)),
                   std::fma(high_of(a), high_of(b), high_of(c)));
#endif
}
// a times the lower, and the upper, half of b.
KVQUANT_DEVICE HalfPair product_by_low(HalfPair a, HalfPair b) {
#ifdef __CUDA_ARCH__
  HalfPair out;
  asm("{\n.reg .f16 low, high;\n.reg .b32 both;\nmov.b32 {low, high}, %2;\n"
      "mov.b32 both, {low, low};\nmul.rn.f16x2 %0, %1, both;\n}"
      : "=r"(out.bits)
      : "r"(a.bits), "r"(b.bits));
  return out;
#else
  return half_pair(low_of(a) * low_of(b), high_of(a) * low_of(b));
#endif
}
KVQUANT_DEVICE HalfPair product_by_high(HalfPair a, HalfPair b) {
#ifdef __CUDA_ARCH__
  HalfPair out;
  asm("{\n.reg .f16 low, high;\n.reg .b32 both;\nmov.b32 {low, high}, %2;\n"
      "mov.b32 both, {high, high};\nmul.rn.f16x2 %0, %1, both;\n}"
      : "=r"(out.bits)
      : "r"(a.bits), "r"(b.bits));
  return out;
#else
  return half_pair(low_of(a) * high_of(b), high_of(a) * high_of(b));
#endif
}
KVQUANT_DEVICE HalfPair product(HalfPair a, HalfPair b) {
#ifdef __CUDA_ARCH__
  HalfPair out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out.bits) : "r"(a.bits), "r"(b.bits));
  return out;
#else
  return half_pair(low_of(a) * low_of(b), high_of(a) * high_of(b));
#endif
}

// Four bytes of the eight of `low` and `high`, counted from the lowest: of byte i of the result,
// digit i (of 16) of `selector` says which. Its digits are below 8.
KVQUANT_DEVICE uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const uint64_t bytes = low | uint64_t{high} << 32;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = selector >> 4 * i & 7;
    out |= static_cast<uint32_t>(bytes >> 8 * from & 0xFF) << 8 * i;
  }
  return out;
#endif
}
// The lower halves of two words, and the upper ones, the first word's below.
KVQUANT_DEVICE uint32_t lower_halves(uint32_t a, uint32_t b) { return byte_permute(a, b, 0x5410); }
KVQUANT_DEVICE uint32_t upper_halves(uint32_t a, uint32_t b) { return byte_permute(a, b, 0x7632); }

// What a thread moves at once; at addresses that are multiples of 16 and 8.
struct alignas(16) Words4 {
  uint32_t words[4] = {};
};
struct alignas(16) Floats4 {
  float numbers[4] = {};
};
struct alignas(8) Words2 {
  uint32_t words[2] = {};
};

// Of global memory that nobody writes meanwhile, and that is read once: asked for where this
// stands, not where it is used.
KVQUANT_DEVICE Words2 stream_words2(const uint32_t* from) {
#ifdef __CUDA_ARCH__
  Words2 out;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(out.words[0]), "=r"(out.words[1])
               : "l"(from));
  return out;
#else
  return {{from[0], from[1]}};
#endif
}
KVQUANT_DEVICE uint32_t stream_word(const uint32_t* from) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(out) : "l"(from));
  return out;
#else
  return *from;
#endif
}

// 2^x of an x that is not above 0, for weights: below 2^-126 it may be 0.
KVQUANT_DEVICE float weight_of(float x) {
#ifdef __CUDA_ARCH__
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return std::exp2(x);
#endif
}

// Asks for a line of memory that will be read soon.
KVQUANT_DEVICE void ask_for([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
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
