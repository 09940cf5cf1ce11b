// Outliers of one (sequence, layer, side, KV head): a list in token-major order, channels ascending
// within a token, in pages of 128 taken from a pool. How many a token has stands in the block of
// its tile (kv_block.h), where the tile's first entry is, too; entry e is in page e / 128.
//
//   offset  bytes  field
//        0    128  channel  u8
//      128    256  value    fp16, exact
#pragma once

#include <cstdint>
#include <span>

#include "base/half.h"

namespace kvquant {

inline constexpr int64_t kOutliersPerPage = 128;

struct OutlierPage {
  uint8_t channel[kOutliersPerPage];
  Half value[kOutliersPerPage];
};
static_assert(sizeof(OutlierPage) == 384);

}  // namespace kvquant
