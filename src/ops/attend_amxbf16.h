// A tile of bf16 against many rows of queries, in the matrix registers of Intel AMX. Part of the
// AVX-512 BF16 kernel of attention, which brings tiles into the layout that both read.
#pragma once

#include "ops/attend_kernels.h"

namespace kvquant {

// A tile as pairs of bf16, whatever it was before.
struct PairTile {
  const uint16_t* queries;  // [rows][padded_dim], in the order of the keys' channels
  const uint16_t* keys;     // [head_dim / 2][64][2]
  const uint16_t* values;   // [32][value_dim rounded up to 16][2]
};

namespace amxbf16 {

// Rows that one step of the kernel takes. Jobs of fewer than half of them are faster without it.
inline constexpr int64_t kGroupRows = 32;
inline constexpr int64_t kHalfRows = kGroupRows / 2;

// The same for all blocks of a job, so that it doesn't matter how the job is cut.
inline bool can_attend(const AttendBlock& block, int64_t job_rows) {
  return job_rows >= kHalfRows && block.head_dim % 32 == 0 && block.value_dim <= kMaxNuqHeadDim;
}

// All rows of the block, whose states and sums it updates. Queries are [rows][padded_dim], rows
// up to the next multiple of kGroupRows may be anything. Requires block.has_amx, and values that
// are finite wherever a token is in use.
void attend_tile(const AttendBlock& block, const TileWork& work, const PairTile& tile) noexcept;

}  // namespace amxbf16
}  // namespace kvquant
