// Code planes (code_planes.h) as 32-bit words: word `lane` of a row holds the pairs of several
// slots, so that a shift and a mask leave one pair of codes in its two halves. For kernels whose
// threads each take the words of one lane.
#pragma once

#include <cstdint>

#include "formats/code_planes.h"

namespace kvquant {

// The words of a lane in one row. `words` of a tile are its bytes, 4 by 4; tiles are aligned.
template <int kBits>
struct LaneWords {
  static_assert(kBits == 2 || kBits == 3 || kBits == 4 || kBits == 8);
  static constexpr int kCount = kBits == 8 ? 2 : kBits == 3 ? 3 : 1;
  uint32_t words[kCount] = {};
};

template <int kBits>
constexpr LaneWords<kBits> load_lane(const uint32_t* tile, int64_t row, int lane) {
  LaneWords<kBits> out;
  if constexpr (kBits == 8) {
    out.words[0] = tile[row * 32 + lane];
    out.words[1] = tile[row * 32 + 16 + lane];
  } else if constexpr (kBits == 4) {
    out.words[0] = tile[row * 16 + lane];
  } else if constexpr (kBits == 2) {
    out.words[0] = tile[row / 2 * 16 + lane] >> row % 2 * 8;
  } else {
    const uint32_t* group = tile + row / 4 * 48 + lane;
    const int64_t phase = row % 4;
    if (phase < 3) {
      out.words[0] = group[phase * 16];
    } else {
      for (int k = 0; k < 3; ++k) out.words[k] = group[k * 16] >> 12;
    }
  }
  return out;
}

// The pair of codes of a slot: that of half 0 in bits 0 to 15, that of half 1 above. `row` is that
// of load_lane.
template <int kBits>
constexpr uint32_t slot_pair(const LaneWords<kBits>& lane, int64_t row, int slot) {
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x10001u;
  if constexpr (kBits == 8) {
    return lane.words[slot / 2] >> slot % 2 * 8 & kMask;
  } else if constexpr (kBits == 3) {
    if (row % 4 < 3) return lane.words[0] >> 3 * slot & kMask;
    if (slot == 0) return lane.words[0] & kMask;
    if (slot == 1) return lane.words[1] & kMask;
    if (slot == 2) return lane.words[2] & kMask;
    uint32_t pair = 0;
    for (int k = 0; k < 3; ++k) pair |= (lane.words[k] >> 3 & 0x10001u) << k;
    return pair;
  } else {
    return lane.words[0] >> kBits * slot & kMask;
  }
}

// One code, at run-time width.
constexpr int word_code_at(const uint32_t* tile, int bits, CodePlace place) {
  const int lane = place.word / 2, shift = place.word % 2 * 16;
  uint32_t pair = 0;
  switch (bits) {
    case 2: pair = slot_pair<2>(load_lane<2>(tile, place.row, lane), place.row, place.slot); break;
    case 3: pair = slot_pair<3>(load_lane<3>(tile, place.row, lane), place.row, place.slot); break;
    case 4: pair = slot_pair<4>(load_lane<4>(tile, place.row, lane), place.row, place.slot); break;
    default: pair = slot_pair<8>(load_lane<8>(tile, place.row, lane), place.row, place.slot); break;
  }
  return static_cast<int>(pair >> shift & 0xFFFF);
}

}  // namespace kvquant
