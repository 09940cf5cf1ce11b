// Coded tiles in the AVX-512 BF16 kernel of attention: few rows of queries read the codes as they
// lie, more read a copy that is decoded once per block of rows.
#pragma once

#include "ops/attend_kernels.h"

namespace kvquant::avx512bf16 {

// Up to this many rows codes are read directly.
inline constexpr int64_t kFusedRows = 8;
inline constexpr int64_t kRegisterRows = 4;  // of them in registers at a time
// Tiles whose scores are turned into weights together: the latency of a softmax, about 150 cycles,
// is paid once for all.
inline constexpr int64_t kGroupTiles = 4;

// What tiles of one run share, in the workspace of their block.
struct CodedState {
  int64_t half_padded = 0;  // head_dim / 2 rounded up to 16: the stride of pairs
  int64_t num_turned = 0;   // rows of codes whose rotation within 16 tokens is done in full,
  int64_t num_bent = 0;     // and those after them that take a square term, see score_one_row
  uint16_t* key_tables;     // [head_dim / 2][2][16] bf16: keys of all codes of both channels
  float* float_tables;      // the same as f32
  float* key_bases;         // [head_dim]: keys of code 0
  float* key_steps;         // [head_dim], of 8 bits: from a code to the next
  uint16_t* value_table;    // [32] bf16 levels
  uint32_t* turns[2];       // [head_dim / 2][16]: (cos, -sin) and (sin, cos) as bf16
  // [rows][4][3][head_dim / 2]: queries q relative to 16 tokens, q_a, q_b and -q_a. What sin of a
  // token's angle multiplies lies head_dim / 2 behind what cos does.
  float* turned;
  uint32_t* pairs[3];              // [4 rows][4][half_padded]: queries as pairs, see turn_queries
  float *level, *slope, *bend;     // [half_padded], of single rows, see make_slopes
  float *far_cos, *far_sin;        // [3][half_padded], of angles of 1, 2 and 3 tiles
  float *middle_cos, *middle_sin;  // [4][half_padded], of the middles of a group's tiles
  // With keys of 8 bits, of each row of the block: what a product of its integers is worth, and
  // what its queries are multiplied by to become integers.
  float *integer_step, *integer_unit;
  float* byte_factors;  // [3][4][half_padded]: see make_byte_factors
  // Queries times keys of code 0, as integers: what cos and sin multiply, [4 rows][4][half_padded],
  // and sums over channels of small angles, [4 rows][3][4].
  int32_t* zero_parts[2];
  float* zero_sums;
  const uint16_t* queries;  // [rows][padded_dim] bf16, channels in pairs that rotate together
};

// Makes the tables and the workspace's biases, for all tiles of the run that `tile` is one of.
void prepare_coded(const AttendBlock& block, const CodedTile& tile, CodedState& state);

// table [32]: levels as bf16, repeated. Codes of 8 bits have no table.
void make_value_table(const NuqCodebook& book, uint16_t* table);

// Cos and sin for the middles of a group of tiles in a row, of which only the first are read from
// the long tables of positions: those lines would be waited for while codes are on their way.
void turn_group_middles(const CodedTile& first, int64_t num_tiles, int64_t head_dim,
                        CodedState& state);

struct RowRange {
  int64_t first, count;
};

// Rows of queries relative to the middles of the tile's four groups of 16 tokens, as f32 (with
// outliers) and as bf16 pairs: pairs[0] is (a, b); of a single row also pairs[1], (b, -a), times
// the frequency where angles are small, and pairs[2], (a, b) times minus half its square. With keys
// of 8 bits all rows are like single ones, and pairs are of 16-bit integers: a and b times their
// channels' steps.
void turn_queries(const AttendBlock& block, const CodedTile& tile, int64_t tile_of_group,
                  RowRange rows, const CodedState& state);

// Coded tiles of one run of the block, in groups; those after them, up to num_ahead, are asked for
// ahead. Requires at most kFusedRows rows.
void attend_coded_tiles(const AttendBlock& block, CodedState& state, const TileWork* tiles,
                        int64_t num_tiles, int64_t num_ahead);

// keys [head_dim / 2][64][2] in the order of state.queries, values [32][padded_dim][2].
void decode_to_bf16(const AttendBlock& block, const CodedState& state, const CodedTile& tile,
                    uint16_t* keys, uint16_t* values);
// Values alone, [32][channels rounded up to 16][2].
void decode_values_to_bf16(const CodedPart& part, int64_t channels, uint16_t* values);

}  // namespace kvquant::avx512bf16
