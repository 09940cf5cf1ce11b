// The bit layouts of GGUF's block formats: where codes, scales and minimums are in a block. What
// values they stand for is in dequant.cc. Blocks lie anywhere; every layout has
//
//   kBytes      bytes of a block
//   kZero       code of the value zero, where the format has no minimum; else 0
//   unpack()    codes, and of super-blocks also scales and offsets
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/linear.h"

namespace kvquant {

inline float load_half_as_float(const std::byte* from) {
  Half value;
  std::memcpy(&value, from, sizeof(value));
  return to_float(value);
}

inline bool fits_half(float value) { return std::abs(value) <= 65504.0f; }  // false for NaN

// codes[i] and codes[i + count] are the low and the high four bits of nibbles[i].
inline void unpack_nibbles(const std::byte* nibbles, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    const auto pair = static_cast<uint8_t>(nibbles[i]);
    codes[i] = pair & 15;
    codes[i + count] = pair >> 4;
  }
}

// 32 values with 5 bits each: nibbles and, one bit a value, what they lack.
inline void unpack_fives(const std::byte* fifth_bits, const std::byte* nibbles, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, fifth_bits, sizeof bits);
  unpack_nibbles(nibbles, 16, codes);
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>((bits >> i & 1) << 4);
}

struct Q8_0 {  // Half d; int8 q[32]
  static constexpr int64_t kBytes = 34;
  static constexpr int kBits = 8;
  static constexpr int kZero = 128;
  static void unpack(const std::byte* block, uint8_t* codes) {
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(block[2 + i]) ^ 0x80;
  }
};

struct Q4_0 {  // Half d; uint8 nibbles[16]
  static constexpr int64_t kBytes = 18;
  static constexpr int kBits = 4;
  static constexpr int kZero = 8;
  static void unpack(const std::byte* block, uint8_t* codes) {
    unpack_nibbles(block + 2, 16, codes);
  }
};

struct Q4_1 {  // Half d, m; uint8 nibbles[16]
  static constexpr int64_t kBytes = 20;
  static constexpr int kBits = 4;
  static constexpr int kZero = 0;
  static void unpack(const std::byte* block, uint8_t* codes) {
    unpack_nibbles(block + 4, 16, codes);
  }
};

struct Q5_0 {  // Half d; uint32 fifth bits; uint8 nibbles[16]
  static constexpr int64_t kBytes = 22;
  static constexpr int kBits = 5;
  static constexpr int kZero = 16;
  static void unpack(const std::byte* block, uint8_t* codes) {
    unpack_fives(block + 2, block + 6, codes);
  }
};

struct Q5_1 {  // Half d, m; uint32 fifth bits; uint8 nibbles[16]
  static constexpr int64_t kBytes = 24;
  static constexpr int kBits = 5;
  static constexpr int kZero = 0;
  static void unpack(const std::byte* block, uint8_t* codes) {
    unpack_fives(block + 4, block + 8, codes);
  }
};

inline constexpr int64_t kSuperBlock = 256;

// A super-block as read: value i is scales[g] * (codes[i] - kZero) + offsets[g] for the group g of
// kGroupSize values that i is in.
struct SuperBlock {
  uint8_t codes[kSuperBlock];
  float scales[16];  // exact: at most 18 significant bits
  float offsets[16];
};

// Scales and offsets of Q4_K and Q5_K: Half d, dmin, then 6 bits each of 8 scales and 8 minimums,
// those of groups 0 to 3 in the low bits of bytes 0 to 7, those of groups 4 to 7 as nibbles of
// bytes 8 to 11 and, above them, the high bits of bytes 0 to 7.
inline void unpack_scales(const std::byte* block, SuperBlock& out) {
  const float d = load_half_as_float(block), dmin = load_half_as_float(block + 2);
  const auto byte = [&](int i) { return static_cast<unsigned>(block[4 + i]); };
  for (int g = 0; g < 4; ++g) {
    const unsigned nibbles = byte(8 + g);
    out.scales[g] = d * static_cast<float>(byte(g) & 63);
    out.offsets[g] = -(dmin * static_cast<float>(byte(4 + g) & 63));
    out.scales[4 + g] = d * static_cast<float>((nibbles & 15) | (byte(g) >> 6 << 4));
    out.offsets[4 + g] = -(dmin * static_cast<float>(nibbles >> 4 | (byte(4 + g) >> 6 << 4)));
  }
}

struct Q4_K {  // Half d, dmin; uint8 scales[12]; uint8 nibbles[128], 32 for 64 values
  static constexpr int64_t kBytes = 144;
  static constexpr int kBits = 4;
  static constexpr int64_t kGroupSize = 32;
  static constexpr int kZero = 0;
  static void unpack(const std::byte* block, SuperBlock& out) {
    unpack_scales(block, out);
    for (int i = 0; i < 4; ++i) unpack_nibbles(block + 16 + 32 * i, 32, out.codes + 64 * i);
  }
};

struct Q5_K {  // as Q4_K, with uint8 fifth bits[32] before the nibbles: bit g of byte i is value
               // 32 g + i's
  static constexpr int64_t kBytes = 176;
  static constexpr int kBits = 5;
  static constexpr int64_t kGroupSize = 32;
  static constexpr int kZero = 0;
  static void unpack(const std::byte* block, SuperBlock& out) {
    unpack_scales(block, out);
    for (int i = 0; i < 4; ++i) unpack_nibbles(block + 48 + 32 * i, 32, out.codes + 64 * i);
    for (int i = 0; i < kSuperBlock; ++i) {
      const unsigned bit = static_cast<unsigned>(block[16 + i % 32]) >> (i / 32) & 1;
      out.codes[i] |= static_cast<uint8_t>(bit << 4);
    }
  }
};

struct Q6_K {  // uint8 nibbles[128], 64 for 128 values; uint8 high bits[64], 32 for 128 values;
               // int8 scales[16]; Half d
  static constexpr int64_t kBytes = 210;
  static constexpr int kBits = 6;
  static constexpr int64_t kGroupSize = 16;
  static constexpr int kZero = 32;
  static void unpack(const std::byte* block, SuperBlock& out) {
    const float d = load_half_as_float(block + 208);
    for (int g = 0; g < 16; ++g) {
      out.scales[g] = d * static_cast<float>(static_cast<int8_t>(block[192 + g]));
      out.offsets[g] = 0;
    }
    for (int half = 0; half < 2; ++half) {
      uint8_t* codes = out.codes + 128 * half;
      unpack_nibbles(block + 64 * half, 64, codes);
      for (int i = 0; i < 128; ++i) {
        const unsigned bits = static_cast<unsigned>(block[128 + 32 * half + i % 32]);
        codes[i] |= static_cast<uint8_t>((bits >> (i / 32 * 2) & 3) << 4);
      }
    }
  }
};

}  // namespace kvquant
