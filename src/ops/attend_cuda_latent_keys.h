// Keys after RoPE that are latents (latent.h) into shared memory, as they are: k' = mean + sum_r
// z_r D_r is never made. Queries meet them as their <q, D_r>, found once per task, and <q, mean> is
// added to scores.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_task.h"

namespace kvquant {

// Queries and biases of a task whose keys are latents. Channels behind the rank stay zeros, so what
// is stored there counts for nothing.
template <class Pair>
KVQUANT_DEVICE void project_queries(const TaskView& view, const AttendShared<Pair>& shared,
                                    int thread) {
  constexpr int kRows = 4;  // for which a thread reads D once
  const CudaLatents& map = view.job->key_latents;
  const int64_t head_dim = shared.head_dim, num_pairs = (map.rank + 1) / 2;
  const int64_t count = (view.num_rows + kRows - 1) / kRows * num_pairs;
  for (int64_t i = thread; i < count; i += kBlockThreads) {
    const int64_t first = i / num_pairs * kRows, r = i % num_pairs * 2;
    const float* decode = map.decode + r * head_dim;
    const bool has_second = r + 1 < map.rank;
    const float* queries[kRows];
    float sums[kRows][2] = {};
    for (int k = 0; k < kRows; ++k)
      queries[k] = view.query(first + k < view.num_rows ? first + k : first);
    for (int64_t c = 0; c < head_dim; ++c) {
      const float a = decode[c], b = has_second ? decode[head_dim + c] : 0.0f;
      KVQUANT_UNROLL
      for (int k = 0; k < kRows; ++k) {
        const float x = queries[k][c];
        sums[k][0] = std::fma(a, x, sums[k][0]);
        sums[k][1] = std::fma(b, x, sums[k][1]);
      }
    }
    for (int k = 0; k < kRows && first + k < view.num_rows; ++k) {
      store_query(shared, first + k, r, sums[k]);
    }
  }
  for (int64_t row = thread; row < view.num_rows; row += kBlockThreads) {
    const float* query = view.query(row);
    float sum = 0;
    for (int64_t c = 0; c < head_dim; ++c) sum = std::fma(query[c], map.mean[c], sum);
    shared.biases[row] = view.call->log2_scale * sum;
  }
}

// fp16 numbers in a tile of keys.
template <class Pair>
KVQUANT_DEVICE void load_dense_latents(const CudaTile& tile, const AttendShared<Pair>& shared,
                                       int thread) {
  const int64_t token = thread % kTileTokens;
  const bool is_there = token < tile.tokens.num_tokens;
  for (int64_t c = thread / kTileTokens * 2; c < tile.run->keys.shape.head_dim;
       c += kBlockThreads / kTileTokens * 2) {
    FloatPair pair;
    if (is_there) pair = dense_pair(tile.keys.words, DenseType::kF16, key_index(token, c));
    set_pair(shared.keys[c / 2 * shared.layout.key_stride + token], pair.first, pair.second);
  }
}

template <class Pair>
KVQUANT_DEVICE void load_latent_keys(const CudaTile& tile, const AttendShared<Pair>& shared,
                                     int thread) {
  const KvBlockShape& shape = tile.run->keys.shape;
  if (!shape.has_codes()) return load_dense_latents(tile, shared, thread);
  const TokenCodes codes{tile.keys.words, shared.key_levels, shared.key_scales, shared.key_zeros};
  decode_tokens(codes, shape, thread, [&](int64_t line, int64_t channel, float a, float b) {
    Pair* pairs = shared.keys + channel / 2 * shared.layout.key_stride + 2 * line;
    set_half(pairs[0], static_cast<int>(channel % 2), a);
    set_half(pairs[1], static_cast<int>(channel % 2), b);
  });
}

template <class Pair>
KVQUANT_DEVICE void place_latent_outliers(const CudaTile& tile, const AttendShared<Pair>& shared,
                                          int thread) {
  for (int64_t i = thread; i < tile.keys.num_outliers; i += kBlockThreads) {
    const OutlierEntry entry = outlier_at(tile.keys, i);
    const int64_t token = entry.place % kTileTokens, channel = entry.place / kTileTokens;
    set_half(shared.keys[channel / 2 * shared.layout.key_stride + token],
             static_cast<int>(channel % 2), widen(entry.value));
  }
}

}  // namespace kvquant
