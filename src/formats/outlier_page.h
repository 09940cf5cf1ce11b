// Outliers of one (sequence, layer, side, KV head): a list in token-major order, channels ascending
// within a token, in pages of 128 taken from a pool. Where a tile's entries begin and how many it
// has stands in the block of the tile (kv_block.h); entry e is in page e / 128.
//
//   offset  bytes  field
//        0      2  place   u16  channel * 64 + token within the tile
//        2      2  value   fp16, exact
#pragma once

#include <cstdint>

#include "base/half.h"
#include "formats/dense_tile.h"

namespace kvquant {

inline constexpr int64_t kOutliersPerPage = 128;

struct OutlierEntry {
  uint16_t place;
  Half value;
};
static_assert(sizeof(OutlierEntry) == 4);

constexpr uint16_t outlier_place(int64_t token, int64_t channel) {
  return static_cast<uint16_t>(channel * kTileTokens + token);
}

struct OutlierPage {
  OutlierEntry entries[kOutliersPerPage];
};
static_assert(sizeof(OutlierPage) == 512);

}  // namespace kvquant
