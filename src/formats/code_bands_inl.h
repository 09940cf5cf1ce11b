// Widening of banded codes. `static`: each file that includes this has its own copy, compiled for
// its instruction set, and compilers make vectors of it.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/code_bands.h"

namespace kvquant {

// The 128 codes of one row of 4 bits as a row of 8. Two slots lie in a byte's halves.
static inline void widen_row4(const uint8_t* from, uint8_t* to) {
  uint16_t in[kSlotCodes], out[2 * kSlotCodes];
  std::memcpy(in, from, sizeof in);
  for (int w = 0; w < kSlotCodes; ++w) {
    const unsigned x = in[w], y = x >> 8;
    const unsigned low = (x & 0x0F) | (x & 0xF0) << 4, high = (y & 0x0F) | (y & 0xF0) << 4;
    out[w] = static_cast<uint16_t>(low | low << 4);
    out[kSlotCodes + w] = static_cast<uint16_t>(high | high << 4);
  }
  std::memcpy(to, out, sizeof out);
}

// Two rows of 2 bits as two of 8. Four slots lie in a byte, the rows in the bytes of a word.
static inline void widen_rows2(const uint8_t* from, uint8_t* to) {
  uint16_t in[kSlotCodes], out[4 * kSlotCodes];
  std::memcpy(in, from, sizeof in);
  const auto spread = [](unsigned slots) {  // bits 0-1 and 2-3 to the two bytes, four times each
    const unsigned apart = (slots & 0x03) | (slots & 0x0C) << 6;
    const unsigned twice = apart | apart << 2;
    return static_cast<uint16_t>(twice | twice << 4);
  };
  for (int w = 0; w < kSlotCodes; ++w) {
    out[w] = spread(in[w]);
    out[kSlotCodes + w] = spread(in[w] >> 4);
    out[2 * kSlotCodes + w] = spread(in[w] >> 8);
    out[3 * kSlotCodes + w] = spread(in[w] >> 12);
  }
  std::memcpy(to, out, sizeof out);
}

// A banded tile as a code tile of 8 bits, `wide`, of as many channels.
static inline void widen_codes(const uint8_t* tile, const CodeBands& bands, uint8_t* wide) {
  for_each_band(bands, [&](const CodeBand& band) {
    const uint8_t* from = tile + band.offset;
    uint8_t* to = wide + code_tile_bytes(kByteCodeBits, band.first_channel);
    const int64_t num_rows = num_code_rows(band.num_channels);
    if (band.bits == kByteCodeBits) {
      std::memcpy(to, from, static_cast<size_t>(num_rows * kRowCodes));
      return;
    }
    for (int64_t row = 0; row < num_rows; row += 2) {
      uint8_t* rows = to + row * kRowCodes;
      if (band.bits == 2) {
        widen_rows2(from + row / 2 * 64, rows);
      } else {
        widen_row4(from + row * 64, rows);
        widen_row4(from + (row + 1) * 64, rows + kRowCodes);
      }
    }
  });
}

}  // namespace kvquant
