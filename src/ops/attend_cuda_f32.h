// A task of attention in f32 throughout: for comparisons, and for values that are rotated.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_load.h"

namespace kvquant {

KVQUANT_DEVICE void find_scores_f32(const TaskView& view, const AttendShared<FloatPair>& shared,
                                    int thread) {
  const AttendSharedLayout& layout = shared.layout;
  const int64_t token = thread % kTileTokens;
  for (int64_t row = thread / kTileTokens; row < view.num_rows;
       row += kBlockThreads / kTileTokens) {
    const FloatPair* query = shared.query + row * layout.query_stride;
    float dot = 0;
    for (int64_t line = 0; line < layout.num_pairs; ++line) {
      const FloatPair key = shared.keys[line * layout.key_stride + token];
      dot = std::fma(query[line].first, key.first, dot);
      dot = std::fma(query[line].second, key.second, dot);
    }
    shared.scores[row * layout.score_stride + token] = dot;
  }
}

KVQUANT_DEVICE void add_values_f32(const TaskView& view, const AttendShared<FloatPair>& shared,
                                   int thread) {
  const AttendSharedLayout& layout = shared.layout;
  for (int64_t channel = thread; channel < shared.value_dim; channel += kBlockThreads) {
    for (int64_t row = 0; row < view.num_rows; ++row) {
      const FloatPair* weights = shared.weights + row * layout.weight_stride;
      float sum = shared.sums[row * shared.head_dim + channel] * shared.factors[row];
      for (int64_t line = 0; line < kTileTokens / 2; ++line) {
        const FloatPair value = shared.values[line * layout.value_stride + channel];
        sum = std::fma(weights[line].first, value.first, sum);
        sum = std::fma(weights[line].second, value.second, sum);
      }
      shared.sums[row * shared.head_dim + channel] = sum;
    }
  }
}

KVQUANT_DEVICE void store_sums_f32(const TaskView& view, const AttendShared<FloatPair>& shared,
                                   int turn, int thread) {
  for (int64_t i = thread; i < view.num_rows * shared.value_dim; i += kBlockThreads) {
    const int64_t row = i / shared.value_dim, channel = i % shared.value_dim;
    view.sums(row)[channel] = shared.sums[row * shared.head_dim + channel] *
                              final_factor(view, shared, kCudaF32Rows, row, turn);
  }
}

// Task block.index() of the call. Requires at most kCudaF32Rows rows.
template <class Block>
KVQUANT_DEVICE void attend_task_f32(const Block& block, const CudaAttend& call) {
  const TaskView view = view_task(call, block.index());
  const auto shared = task_shared<FloatPair>(block.shared(), view, kCudaF32Rows, /*has_sums=*/true);
  block.phase([&](int thread) {
    clear_shared(shared, kCudaF32Rows, thread);
    for (int64_t i = thread; i < kCudaF32Rows * shared.head_dim; i += kBlockThreads) {
      shared.sums[i] = 0;
    }
  });
  const auto add_tile = [&](const CudaTile& tile, int old) {
    if (tile.run->values.hadamard) rotate_values_back(block, shared);
    block.phase([&](int thread) { find_scores_f32(view, shared, thread); });
    block.warp_phase([&](auto warp) { find_weights(warp, view, tile, shared, kCudaF32Rows, old); });
    block.phase([&](int thread) { add_values_f32(view, shared, thread); });
  };
  const int turn = each_tile(block, view, shared, TileChoice::kAll, add_tile);
  block.phase([&](int thread) {
    store_sums_f32(view, shared, turn, thread);
    store_states(view, shared, kCudaF32Rows, turn, thread);
    clear_latent_sums(view, thread);
  });
}

}  // namespace kvquant
