#include "formats/code_planes.h"

#include <bit>
#include <cassert>
#include <cstring>

namespace kvquant {
namespace {

void add_nibbles(uint8_t* row, const uint8_t* codes) {
  for (int i = 0; i < 32; ++i) row[i] |= static_cast<uint8_t>(codes[i] | codes[i + 32] << 4);
}

// The low two bits of every code.
void add_pairs(uint8_t* row, const uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    row[i] |= static_cast<uint8_t>((codes[i] & 3) | (codes[i + 16] & 3) << 2 |
                                   (codes[i + 32] & 3) << 4 | (codes[i + 48] & 3) << 6);
  }
}

void add_third_bits(uint8_t* row, const uint8_t* codes) {
  for (int i = 0; i < 8; ++i) {
    int byte = 0;
    for (int b = 0; b < 8; ++b) byte |= (codes[8 * i + b] >> 2 & 1) << b;
    row[i] |= static_cast<uint8_t>(byte);
  }
}

void read_pairs(const uint8_t* __restrict row, uint8_t* __restrict codes) {
  for (int i = 0; i < 16; ++i) codes[i] = row[i] & 3;  // constant shifts: these loops vectorise
  for (int i = 0; i < 16; ++i) codes[16 + i] = row[i] >> 2 & 3;
  for (int i = 0; i < 16; ++i) codes[32 + i] = row[i] >> 4 & 3;
  for (int i = 0; i < 16; ++i) codes[48 + i] = row[i] >> 6;
}

// Adds 4 to code b where bit b is set. Eight codes at once in a word: bit b stays in byte b alone,
// where it carries into the byte's top bit.
void add_spread_bits(uint8_t bits, uint8_t* codes) {
  static_assert(std::endian::native == std::endian::little);
  const uint64_t alone = bits * 0x0101010101010101u & 0x8040201008040201u;
  const uint64_t ones = (alone + 0x7F7F7F7F7F7F7F7Fu) >> 7 & 0x0101010101010101u;
  uint64_t word = 0;
  std::memcpy(&word, codes, 8);
  word |= ones << 2;
  std::memcpy(codes, &word, 8);
}

}  // namespace

void add_code_row(uint8_t* tile, int bits, int64_t head_dim, int64_t channel,
                  const uint8_t* codes) noexcept {
  assert(is_code_width(bits));
  if (bits == kByteCodeBits) {
    for (int i = 0; i < kTileTokens; ++i) tile[channel * kTileTokens + i] |= codes[i];
    return;
  }
  if (bits == 4) {
    add_nibbles(tile + channel * 32, codes);
    return;
  }
  add_pairs(tile + channel * 16, codes);
  if (bits == 3) add_third_bits(tile + head_dim * 16 + channel * 8, codes);
}

void read_code_row(const uint8_t* tile, int bits, int64_t head_dim, int64_t channel,
                   uint8_t* codes) noexcept {
  assert(is_code_width(bits));
  if (bits == kByteCodeBits) {
    std::memcpy(codes, tile + channel * kTileTokens, kTileTokens);
    return;
  }
  if (bits == 4) {
    const uint8_t* row = tile + channel * 32;
    for (int i = 0; i < 32; ++i) codes[i] = row[i] & 15;
    for (int i = 0; i < 32; ++i) codes[i + 32] = row[i] >> 4;
    return;
  }
  read_pairs(tile + channel * 16, codes);
  if (bits != 3) return;
  const uint8_t* third = tile + head_dim * 16 + channel * 8;
  for (int i = 0; i < 8; ++i) add_spread_bits(third[i], codes + 8 * i);
}

}  // namespace kvquant
