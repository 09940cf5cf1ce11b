// Tiles of value codes whose channels have 8, 4 or 2 bits: one code tile (code_planes.h) for each
// width that occurs, the widest first.
//
//   tile     code tile of 8-bit channels | of 4-bit channels | of 2-bit channels
//   channel  0 ...                       | behind those      | behind those
//
// Codes are uniform, from -1 to 1, and widen to codes of 8 bits that mean the same: a 4-bit code
// times 17, a 2-bit code times 85. So whoever reads codes of 8 bits reads these. Bands but the last
// have a multiple of 16 channels, the last a multiple of 8. Worked example, 16 + 16 + 16 channels:
// the tile has 8 * 16 * (8 + 4 + 2) = 1792 bytes; of (token 18, channel 41) the 2-bit code is that
// of channel 9 of the third code tile, which begins at byte 1536.
#pragma once

#include <cstdint>

#include "formats/code_planes.h"

namespace kvquant {

struct CodeBands {
  int32_t channels[3] = {};  // of 8, 4 and 2 bits; all 0: not banded

  constexpr int64_t num_channels() const { return channels[0] + channels[1] + channels[2]; }
  constexpr bool is_banded() const { return num_channels() > 0; }
  friend constexpr bool operator==(const CodeBands&, const CodeBands&) = default;
};

struct CodeBand {
  int bits;
  int64_t first_channel;
  int64_t num_channels;
  int64_t offset;  // of its code tile, in bytes
};

// Calls fn(const CodeBand&) for those that have channels.
template <class Fn>
constexpr void for_each_band(const CodeBands& bands, Fn&& fn) {
  CodeBand band{0, 0, 0, 0};
  for (int i = 0; i < 3; ++i) {
    band.bits = 8 >> i;
    band.num_channels = bands.channels[i];
    if (band.num_channels > 0) fn(static_cast<const CodeBand&>(band));
    band.first_channel += band.num_channels;
    band.offset += code_tile_bytes(band.bits, band.num_channels);
  }
}

constexpr int64_t band_tile_bytes(const CodeBands& bands) {
  int64_t bytes = 0;
  for_each_band(
      bands, [&](const CodeBand& band) { bytes += code_tile_bytes(band.bits, band.num_channels); });
  return bytes;
}

// The 8-bit code that a code of the tile widens to.
int band_code_at(const uint8_t* tile, const CodeBands& bands, int64_t token, int64_t channel);

}  // namespace kvquant
