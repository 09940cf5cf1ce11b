// The dense codes of a compressed tile: 64 tokens of one KV head, keys and values alike, 2, 3, 4 or
// 8 bits each, channel-major, so that a register of one channel's tokens loads contiguously. The
// layout is provisional until the fused kernels settle it by measurement (docs/formats.md).
//
//   8 bits  [head_dim][64]  byte i of a channel: token i
//   4 bits  [head_dim][32]  byte i: token i in the low nibble, token i + 32 in the high one
//   2 bits  [head_dim][16]  byte i: tokens i, i + 16, i + 32, i + 48, lowest bits first
//   3 bits  [head_dim][16]  the low two bits of every code as above, then
//           [head_dim][8]   the third bits: token t is bit t % 8 of byte t / 8
//
// A tile has 8 * bits * head_dim bytes whatever the number of tokens in use; unused codes are zero.
// Worked example, 4 bits: codes 1, 2 of tokens 0, 32 of channel 0 are byte 0 = 0x21.
#pragma once

#include <cstdint>

#include "formats/dense_tile.h"

namespace kvquant {

inline constexpr int kMinCodeBits = 2;  // of a codebook with a table of levels
inline constexpr int kMaxCodeBits = 4;
inline constexpr int kMaxLevels = 16;
inline constexpr int kByteCodeBits = 8;  // of uniform codes without a table

constexpr bool is_code_width(int bits) {
  return (kMinCodeBits <= bits && bits <= kMaxCodeBits) || bits == kByteCodeBits;
}

constexpr int64_t code_tile_bytes(int bits, int64_t head_dim) {
  return head_dim * bits * (kTileTokens / 8);
}

// Adds the codes [64] of one channel to a tile whose codes of these tokens are zero so far; a code
// of 0 leaves what is there. This is how a partly filled tile grows.
void add_code_row(uint8_t* tile, int bits, int64_t head_dim, int64_t channel,
                  const uint8_t* codes) noexcept;

// The codes [64] of one channel.
void read_code_row(const uint8_t* tile, int bits, int64_t head_dim, int64_t channel,
                   uint8_t* codes) noexcept;

}  // namespace kvquant
