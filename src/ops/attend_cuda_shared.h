// Shared memory of a block that works on a task: one decoded tile, queries, scores, weights.
//
// Keys and values of a tile lie as in dense_tile.h, pairs being neighbouring channels of a key and
// neighbouring tokens of values: what products take as one word. Lines are padded so that the
// threads of a warp, which read 4 lines at 8 neighbouring places, meet different banks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "formats/code_planes.h"
#include "ops/attend_cuda.h"
#include "ops/cuda_numbers.h"

namespace kvquant {

struct AttendSharedLayout {
  int64_t num_pairs;   // lines of keys: channels come in 16
  int64_t key_stride;  // pairs between lines, here and below
  int64_t value_stride;
  int64_t query_stride;
  int64_t weight_stride;
  int64_t score_stride;                              // floats between rows
  int64_t num_key_params;                            // channels, or tokens of latents
  int64_t keys, values, query, query_rest, weights;  // offsets in bytes from here on
  int64_t scores, params, rows, sums;
  int64_t num_bytes;
};

// num_rows: room for; has_sums: weighted sums are in shared memory, too.
constexpr AttendSharedLayout attend_shared_layout(int64_t head_dim, int64_t num_rows,
                                                  int64_t pair_bytes, bool has_sums) {
  AttendSharedLayout layout{};
  layout.num_pairs = padded_head_dim(head_dim) / 2;
  layout.key_stride = kTileTokens + 8;
  layout.value_stride = head_dim + 8;
  layout.query_stride = layout.num_pairs + 4;
  layout.weight_stride = kTileTokens / 2 + 4;
  layout.score_stride = kTileTokens + 8;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = layout.num_bytes;
    layout.num_bytes += (bytes + 15) / 16 * 16;
    return offset;
  };
  layout.keys = take(layout.num_pairs * layout.key_stride * pair_bytes);
  layout.values = take(kTileTokens / 2 * layout.value_stride * pair_bytes);
  layout.query = take(num_rows * layout.query_stride * pair_bytes);
  // has_sums: f32, which rounds nothing.
  layout.query_rest = take(has_sums ? 0 : num_rows * layout.query_stride * pair_bytes);
  layout.weights = take(num_rows * layout.weight_stride * pair_bytes);
  layout.scores = take(num_rows * layout.score_stride * 4);
  layout.num_key_params = head_dim < kTileTokens ? kTileTokens : head_dim;
  layout.params = take((2 * layout.num_key_params + 2 * kTileTokens + 2 * kMaxLevels) * 4);
  layout.rows = take(6 * num_rows * 4);
  layout.sums = take(has_sums ? num_rows * head_dim * 4 : 0);
  return layout;
}

template <class Pair>
struct AttendShared {
  AttendSharedLayout layout;
  int64_t head_dim;
  int64_t value_dim;       // of values: head_dim, or the width of latents, which is no larger
  Pair* keys;              // [num_pairs][key_stride]: of channels 2i and 2i + 1
  Pair* values;            // [32][value_stride]: of tokens 2i and 2i + 1
  Pair* query;             // [rows][query_stride], as keys need it
  Pair* query_rest;        // bf16: what rounding took from `query`
  Pair* weights;           // [rows][weight_stride]: of tokens 2i and 2i + 1
  float* scores;           // [rows][score_stride], unscaled
  float* key_scales;       // [head_dim]; of latents [64], as those of values
  float* key_zeros;        // the same
  float* value_scales;     // [64]
  float* value_zeros;      // [64]
  float* key_levels;       // [16]
  float* value_levels;     // [16]
  float* biases;           // [rows], of scores of coded keys and latents, in units of log2
  float* factors;          // [rows]: what sums so far are multiplied by
  float* max;              // [2][rows]: of the state before and behind a tile, in turn
  float* sum;              // [2][rows]
  float* sums;             // [rows][head_dim], if it is here
  std::byte* staged_keys;  // codes of the next tile, if there is room
  std::byte* staged_values;
};

template <class Pair>
KVQUANT_DEVICE AttendShared<Pair> slice_shared(std::byte* base, int64_t head_dim, int64_t num_rows,
                                               bool has_sums) {
  AttendShared<Pair> out{};
  out.layout = attend_shared_layout(head_dim, num_rows, sizeof(Pair), has_sums);
  out.head_dim = out.value_dim = head_dim;
  out.keys = reinterpret_cast<Pair*>(base + out.layout.keys);
  out.values = reinterpret_cast<Pair*>(base + out.layout.values);
  out.query = reinterpret_cast<Pair*>(base + out.layout.query);
  out.query_rest = has_sums ? nullptr : reinterpret_cast<Pair*>(base + out.layout.query_rest);
  out.weights = reinterpret_cast<Pair*>(base + out.layout.weights);
  out.scores = reinterpret_cast<float*>(base + out.layout.scores);
  out.key_scales = reinterpret_cast<float*>(base + out.layout.params);
  out.key_zeros = out.key_scales + out.layout.num_key_params;
  out.value_scales = out.key_zeros + out.layout.num_key_params;
  out.value_zeros = out.value_scales + kTileTokens;
  out.key_levels = out.value_zeros + kTileTokens;
  out.value_levels = out.key_levels + kMaxLevels;
  out.biases = reinterpret_cast<float*>(base + out.layout.rows);
  out.factors = out.biases + num_rows;
  out.max = out.factors + num_rows;
  out.sum = out.max + 2 * num_rows;
  out.sums = reinterpret_cast<float*>(base + out.layout.sums);
  out.staged_keys = base + out.layout.num_bytes;
  return out;
}

}  // namespace kvquant
