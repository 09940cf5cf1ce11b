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

// Bit `bit` of a code of 2, 3 or 4 bits.
constexpr BitPlace bit_place(int bits, CodePlace place, int bit) {
  int64_t block = place.row * 64;  // where the 32 numbers begin
  int shift = 4 * place.slot + bit;
  if (bits == 2) {
    block = place.row / 2 * 64;
    shift = static_cast<int>(place.row % 2) * 8 + 2 * place.slot + bit;
  } else if (bits == 3) {
    const auto phase = static_cast<int>(place.row % 4);
    const bool is_split = phase == 3 && place.slot == 3;
    const int number = phase < 3 ? phase : is_split ? bit : place.slot;
    block = place.row / 4 * 192 + number * 64;
    shift = phase < 3 ? 3 * place.slot + bit : is_split ? 15 : 12 + bit;
  }
  return {block + 2 * place.word + shift / 8, shift % 8};
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

void add_pairs(const Row& codes, int64_t row, uint8_t* out) {
  out += row / 2 * 64 + row % 2;
  for (int i = 0; i < kSlotCodes; ++i) {
    out[2 * i] |=
        static_cast<uint8_t>(codes[0][i] | codes[1][i] << 2 | codes[2][i] << 4 | codes[3][i] << 6);
  }
}

void add_number(uint8_t* out, int number) {
  out[0] |= static_cast<uint8_t>(number);
  out[1] |= static_cast<uint8_t>(number >> 8);
}

void add_triples(const Row& codes, int64_t row, uint8_t* out) {
  out += row / 4 * 192;
  const int64_t phase = row % 4;
  for (int i = 0; i < kSlotCodes; ++i) {
    if (phase < 3) {
      add_number(out + 64 * phase + 2 * i,
                 codes[0][i] | codes[1][i] << 3 | codes[2][i] << 6 | codes[3][i] << 9);
      continue;
    }
    for (int k = 0; k < 3; ++k) {
      add_number(out + 64 * k + 2 * i, codes[k][i] << 12 | (codes[3][i] >> k & 1) << 15);
    }
  }
}

void add_row(uint8_t* tile, int bits, int64_t row, const Row& codes) {
  switch (bits) {
    case 8:
      for (int s = 0; s < kRowSlots; ++s) {
        uint8_t* out = tile + row * 128 + s / 2 * 64 + s % 2;
        for (int i = 0; i < kSlotCodes; ++i) out[2 * i] |= codes[s][i];
      }
      break;
    case 4: add_nibbles(codes, tile + row * 64); break;
    case 3: add_triples(codes, row, tile); break;
    default: add_pairs(codes, row, tile); break;
  }
}

// Slot `slot` of a row, [word].
void read_slot(const uint8_t* tile, int bits, int64_t row, int slot, uint8_t* codes) {
  const CodePlace first{row, slot, 0};
  if (bits == 8) {
    const uint8_t* in = tile + byte_place(first);
    for (int i = 0; i < kSlotCodes; ++i) codes[i] = in[2 * i];
    return;
  }
  std::fill_n(codes, kSlotCodes, uint8_t{0});
  for (int bit = 0; bit < bits; ++bit) {
    const auto [byte, shift] = bit_place(bits, first, bit);
    for (int i = 0; i < kSlotCodes; ++i) {
      codes[i] |= static_cast<uint8_t>((tile[byte + 2 * i] >> shift & 1) << bit);
    }
  }
}

}  // namespace

int code_at(const uint8_t* tile, int bits, CodePlace place) noexcept {
  assert(is_code_width(bits));
  if (bits == 8) return tile[byte_place(place)];
  int code = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const auto [byte, shift] = bit_place(bits, place, bit);
    code |= (tile[byte] >> shift & 1) << bit;
  }
  return code;
}

void add_code(uint8_t* tile, int bits, CodePlace place, int code) noexcept {
  assert(is_code_width(bits));
  if (bits == 8) {
    tile[byte_place(place)] |= static_cast<uint8_t>(code);
    return;
  }
  for (int bit = 0; bit < bits; ++bit) {
    const auto [byte, shift] = bit_place(bits, place, bit);
    tile[byte] |= static_cast<uint8_t>((code >> bit & 1) << shift);
  }
}

void clear_code(uint8_t* tile, int bits, CodePlace place) noexcept {
  assert(is_code_width(bits));
  if (bits == 8) {
    tile[byte_place(place)] = 0;
    return;
  }
  for (int bit = 0; bit < bits; ++bit) {
    const auto [byte, shift] = bit_place(bits, place, bit);
    tile[byte] &= static_cast<uint8_t>(~(1 << shift));
  }
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
      add_row(tile, bits, c, row);
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
      add_row(tile, bits, first / 2 + octet, row);
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
        read_slot(tile, bits, c, s, codes);
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
        read_slot(tile, bits, first / 2 + octet, s, codes);
        uint8_t* out = planar + first * kTileTokens + 8 * octet + 2 * s;
        for (int64_t lane = 0; lane < num_lanes; ++lane) {
          std::memcpy(out + lane * kTileTokens, codes + 2 * lane, 2);
        }
      }
    }
  }
}

}  // namespace kvquant
