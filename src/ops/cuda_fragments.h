// What each thread of a warp holds of the matrices of one product on tensor cores, mma.sync
// m16n8k16 with bf16 factors and f32 sums. With g = lane / 4, t = lane % 4, a pair being two
// neighbours along k, the lower half first:
//
//   A [16][16]   pairs[i]   row g + 8 (i % 2)    k 2t + 8 (i / 2) and the next
//   B [16][8]    pairs[i]   k 2t + 8 i and the next, column g
//   C [16][8]    sums[i]    row g + 8 (i / 2)    column 2t + i % 2
#pragma once

#include <cstdint>

namespace kvquant {

inline constexpr int kWarpThreads = 32;
inline constexpr int kBlockWarps = 4;
inline constexpr int kBlockThreads = kBlockWarps * kWarpThreads;
inline constexpr int kCopyBytes = 16;  // of a thread's copy to shared memory

struct FragmentA {
  uint32_t pairs[4] = {};
};
struct FragmentB {
  uint32_t pairs[2] = {};
};
struct FragmentC {
  float sums[4] = {};
};

constexpr int fragment_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
constexpr int fragment_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

}  // namespace kvquant
