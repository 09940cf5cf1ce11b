// Dense keys beside values that are codes, for few rows of queries: the codes are summed
// as they are.
#pragma once

#include "ops/attend_kernels.h"

namespace kvquant::avx512bf16 {

// Tiles of one run, of the same codebook, whose keys lie one behind the other. The workspace holds
// the queries as bf16. Requires at most kFusedRows rows.
void attend_half_coded(const AttendBlock& block, const TileWork* tiles, int64_t num_tiles);

}  // namespace kvquant::avx512bf16
