// The dense codes of a compressed tile: 64 tokens of one KV head, 2, 3, 4 or 8 bits each, so that
// attention reads them as they lie. Codes come in rows of 128: 4 slots of 16 lanes of a pair. A
// 32-bit lane of a register holds the pairs of four (8 bits: two) slots; shifting it by `slot`
// codes leaves one pair of codes in its two halves, ready for a dot product of pairs.
//
//            row                         slot            lane          half of the pair
//   keys     channel % (head_dim / 2)    token / 16      token % 16    channel / (head_dim / 2)
//   values   channel / 16 * 8 + token/8  token % 8 / 2   channel % 16  token % 2
//
// The pair of keys is what RoPE rotates together. With w = 2 * lane + half, u16 little-endian:
//
//   8 bits  row r at 128 r: u16[2][32], code in byte slot % 2 of u16[slot / 2][w]
//   4 bits  row r at 64 r: u16[32], code in bits 4 slot .. of u16[w]
//   2 bits  rows 2i, 2i + 1 at 64 i: u16[32], code in bits 8 (r % 2) + 2 slot .. of u16[w]
//   3 bits  rows 4i to 4i + 3 at 192 i: u16[3][32]. Of row 4i + k, k < 3, the code is in bits
//           3 slot .. of u16[k][w]; of row 4i + 3, slot < 3, in bits 12-14 of u16[slot][w]; of its
//           slot 3, bit k of the code is bit 15 of u16[k][w]
//
// head_dim, for keys a multiple of 8, is padded to a multiple of 16. A tile has 8 * bits * padded
// bytes whatever the number of tokens in use; unused codes are zero. Worked example, keys, 4 bits,
// head_dim 16: code 5 of (token 18, channel 9) is in row 1, slot 1, lane 2, half 1: bits 4-7 of
// u16[5] of row 1, the high nibble of byte 64 + 10 = 74, which is 0x50.
#pragma once

#include <cstdint>

#include "formats/dense_tile.h"

namespace kvquant {

enum class KvSide { kKey, kValue };

inline constexpr int kMinCodeBits = 2;  // of a codebook with a table of levels
inline constexpr int kMaxCodeBits = 4;
inline constexpr int kMaxLevels = 16;
inline constexpr int kByteCodeBits = 8;  // of uniform codes without a table

inline constexpr int kRowSlots = 4;
inline constexpr int kSlotCodes = 32;  // 16 lanes of a pair
inline constexpr int kRowCodes = kRowSlots * kSlotCodes;

constexpr bool is_code_width(int bits) {
  return (kMinCodeBits <= bits && bits <= kMaxCodeBits) || bits == kByteCodeBits;
}

constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int64_t num_code_rows(int64_t head_dim) { return padded_head_dim(head_dim) / 2; }
constexpr int64_t code_tile_bytes(int bits, int64_t head_dim) {
  return 8 * bits * padded_head_dim(head_dim);
}

struct CodePlace {
  int64_t row;
  int slot;
  int word;  // 2 * lane + half
};

constexpr CodePlace code_place(KvSide side, int64_t head_dim, int64_t token, int64_t channel) {
  if (side == KvSide::kKey) {
    const int64_t half = head_dim / 2;
    return {channel % half, static_cast<int>(token / 16),
            static_cast<int>(token % 16 * 2 + channel / half)};
  }
  return {channel / 16 * 8 + token / 8, static_cast<int>(token % 8 / 2),
          static_cast<int>(channel % 16 * 2 + token % 2)};
}

int code_at(const uint8_t* tile, int bits, CodePlace place) noexcept;
// Adds a code to one that is zero so far.
void add_code(uint8_t* tile, int bits, CodePlace place, int code) noexcept;
void clear_code(uint8_t* tile, int bits, CodePlace place) noexcept;

// Adds planar codes [head_dim][64] to a tile where the codes that are not zero in `planar` are zero
// so far. This is how a partly filled tile grows.
void add_codes(uint8_t* tile, KvSide side, int bits, int64_t head_dim,
               const uint8_t* planar) noexcept;

// All codes of a tile, planar [head_dim][64].
void read_codes(const uint8_t* tile, KvSide side, int bits, int64_t head_dim,
                uint8_t* planar) noexcept;

}  // namespace kvquant
