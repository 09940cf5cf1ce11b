#include "formats/code_planes.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace kvquant {
namespace {

// Codes of a row, [slot][word].
using Row = uint8_t[kRowSlots][kSlotCodes];

struct BitPlace {
  int64_t byte;
  int shift;
};

// In a plane of 1, 2 or 4 bits a code.
constexpr BitPlace bit_place(int bits, CodePlace place) {
  const int rows = 4 / bits;  // that share 64 bytes
  const int bit = static_cast<int>(place.row % rows) * 4 * bits + bits * place.slot;
  return {place.row / rows * 64 + 2 * place.word + bit / 8, bit % 8};
}

constexpr int64_t byte_place(CodePlace place) {
  return place.row * 128 + place.slot / 2 * 64 + 2 * place.word + place.slot % 2;
}

void add_nibbles(const Row& codes, uint8_t* out) {
  for (int i = 0; i < kSlotCodes; ++i) {
    out[2 * i] |= static_cast<uint8_t>(codes[0][i] | codes[1][i] << 4);
    out[2 * i + 1] |= static_cast<uint8_t>(codes[2][i] | codes[3][i] << 4);
  }
}

// The low two bits of every code of row `row`; `out` is the plane.
void add_pairs(const Row& codes, int64_t row, uint8_t* out) {
  out += row / 2 * 64 + row % 2;
  for (int i = 0; i < kSlotCodes; ++i) {
    out[2 * i] |= static_cast<uint8_t>((codes[0][i] & 3) | (codes[1][i] & 3) << 2 |
                                       (codes[2][i] & 3) << 4 | (codes[3][i] & 3) << 6);
  }
}

void add_third_bits(const Row& codes, int64_t row, uint8_t* out) {
  out += row / 4 * 64 + row % 4 / 2;
  const auto shift = static_cast<int>(row % 2 * 4);
  for (int i = 0; i < kSlotCodes; ++i) {
    const int four =
        codes[0][i] >> 2 | codes[1][i] >> 2 << 1 | codes[2][i] >> 2 << 2 | codes[3][i] >> 2 << 3;
    out[2 * i] |= static_cast<uint8_t>(four << shift);
  }
}

void add_row(uint8_t* tile, int bits, int64_t head_dim, int64_t row, const Row& codes) {
  switch (bits) {
    case 8:
      for (int s = 0; s < kRowSlots; ++s) {
        uint8_t* out = tile + row * 128 + s / 2 * 64 + s % 2;
        for (int i = 0; i < kSlotCodes; ++i) out[2 * i] |= codes[s][i];
      }
      break;
    case 4: add_nibbles(codes, tile + row * 64); break;
    case 3: add_third_bits(codes, row, tile + third_plane_offset(head_dim)); [[fallthrough]];
    default: add_pairs(codes, row, tile); break;
  }
}

// Slot `slot` of a row, [word].
void read_slot(const uint8_t* tile, int bits, int64_t head_dim, int64_t row, int slot,
               uint8_t* codes) {
  const CodePlace first{row, slot, 0};
  if (bits == 8) {
    const uint8_t* in = tile + byte_place(first);
    for (int i = 0; i < kSlotCodes; ++i) codes[i] = in[2 * i];
    return;
  }
  const int low_bits = bits == 4 ? 4 : 2;
  const auto [byte, shift] = bit_place(low_bits, first);
  const int mask = (1 << low_bits) - 1;
  for (int i = 0; i < kSlotCodes; ++i) {
    codes[i] = static_cast<uint8_t>(tile[byte + 2 * i] >> shift & mask);
  }
  if (bits != 3) return;
  const uint8_t* plane = tile + third_plane_offset(head_dim);
  const auto [third_byte, third_shift] = bit_place(1, first);
  for (int i = 0; i < kSlotCodes; ++i) {
    codes[i] |= static_cast<uint8_t>((plane[third_byte + 2 * i] >> third_shift & 1) << 2);
  }
}

}  // namespace

int code_at(const uint8_t* tile, int bits, int64_t head_dim, CodePlace place) noexcept {
  assert(is_code_width(bits));
  if (bits == 8) return tile[byte_place(place)];
  const int low_bits = bits == 4 ? 4 : 2;
  const auto [byte, shift] = bit_place(low_bits, place);
  const int low = tile[byte] >> shift & ((1 << low_bits) - 1);
  if (bits != 3) return low;
  const auto [third_byte, third_shift] = bit_place(1, place);
  return low | (tile[third_plane_offset(head_dim) + third_byte] >> third_shift & 1) << 2;
}

void add_code(uint8_t* tile, int bits, int64_t head_dim, CodePlace place, int code) noexcept {
  assert(is_code_width(bits));
  if (bits == 8) {
    tile[byte_place(place)] |= static_cast<uint8_t>(code);
    return;
  }
  const auto [byte, shift] = bit_place(bits == 4 ? 4 : 2, place);
  tile[byte] |= static_cast<uint8_t>((bits == 4 ? code : code & 3) << shift);
  if (bits != 3) return;
  const auto [third_byte, third_shift] = bit_place(1, place);
  tile[third_plane_offset(head_dim) + third_byte] |= static_cast<uint8_t>(code >> 2 << third_shift);
}

void clear_code(uint8_t* tile, int bits, int64_t head_dim, CodePlace place) noexcept {
  assert(is_code_width(bits));
  if (bits == 8) {
    tile[byte_place(place)] = 0;
    return;
  }
  const int low_bits = bits == 4 ? 4 : 2;
  const auto [byte, shift] = bit_place(low_bits, place);
  tile[byte] &= static_cast<uint8_t>(~(((1 << low_bits) - 1) << shift));
  if (bits != 3) return;
  const auto [third_byte, third_shift] = bit_place(1, place);
  tile[third_plane_offset(head_dim) + third_byte] &= static_cast<uint8_t>(~(1 << third_shift));
}

void add_codes(uint8_t* tile, KvSide side, int bits, int64_t head_dim,
               const uint8_t* planar) noexcept {
  assert(is_code_width(bits) && (side == KvSide::kValue || head_dim % 8 == 0));
  Row row;
  if (side == KvSide::kKey) {
    const int64_t half = head_dim / 2;
    for (int64_t c = 0; c < half; ++c) {
      const uint8_t* a = planar + c * kTileTokens;
      const uint8_t* b = a + half * kTileTokens;
      for (int s = 0; s < kRowSlots; ++s) {
        for (int lane = 0; lane < 16; ++lane) {
          row[s][2 * lane] = a[16 * s + lane];
          row[s][2 * lane + 1] = b[16 * s + lane];
        }
      }
      add_row(tile, bits, head_dim, c, row);
    }
    return;
  }
  for (int64_t first = 0; first < head_dim; first += 16) {
    const int64_t num_lanes = std::min<int64_t>(16, head_dim - first);
    for (int64_t octet = 0; octet < 8; ++octet) {
      if (num_lanes < 16) std::memset(row, 0, sizeof row);
      for (int64_t lane = 0; lane < num_lanes; ++lane) {
        const uint8_t* in = planar + (first + lane) * kTileTokens + 8 * octet;
        for (int t = 0; t < 8; ++t) row[t / 2][2 * lane + t % 2] = in[t];
      }
      add_row(tile, bits, head_dim, first / 2 + octet, row);
    }
  }
}

void read_codes(const uint8_t* tile, KvSide side, int bits, int64_t head_dim,
                uint8_t* planar) noexcept {
  assert(is_code_width(bits) && (side == KvSide::kValue || head_dim % 8 == 0));
  uint8_t codes[kSlotCodes];
  if (side == KvSide::kKey) {
    const int64_t half = head_dim / 2;
    for (int64_t c = 0; c < half; ++c) {
      for (int s = 0; s < kRowSlots; ++s) {
        read_slot(tile, bits, head_dim, c, s, codes);
        uint8_t* a = planar + c * kTileTokens + 16 * s;
        uint8_t* b = a + half * kTileTokens;
        for (int lane = 0; lane < 16; ++lane) a[lane] = codes[2 * lane];
        for (int lane = 0; lane < 16; ++lane) b[lane] = codes[2 * lane + 1];
      }
    }
    return;
  }
  for (int64_t first = 0; first < head_dim; first += 16) {
    const int64_t num_lanes = std::min<int64_t>(16, head_dim - first);
    for (int64_t octet = 0; octet < 8; ++octet) {
      for (int s = 0; s < kRowSlots; ++s) {
        read_slot(tile, bits, head_dim, first / 2 + octet, s, codes);
        uint8_t* out = planar + first * kTileTokens + 8 * octet + 2 * s;
        for (int64_t lane = 0; lane < num_lanes; ++lane) {
          std::memcpy(out + lane * kTileTokens, codes + 2 * lane, 2);
        }
      }
    }
  }
}

}  // namespace kvquant
