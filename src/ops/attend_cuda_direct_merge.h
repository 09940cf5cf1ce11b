// What the warps of a block have summed up of coded tiles (attend_cuda_direct.h), put together, and
// handed to the sums of all other tiles.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_bf16.h"
#include "ops/attend_cuda_direct_weights.h"

namespace kvquant {

// What a warp has summed up.
template <class Owner, int kSteps>
struct DirectSums {
  typename Owner::template Lanes<FragmentC> sums[kSteps];
  typename Owner::template Lanes<ThreadRows> rows;
};

// What a warp has, to where merge_warps reads it: weighted sums [warp][row][head_dim], in
// `exchange` the states.
template <int kSteps, class Warp, class Sums>
KVQUANT_DEVICE void hand_over_sums(const Warp& warp, const DirectShared& shared, Sums& all) {
  for (int mask = 4; mask < kWarpThreads; mask *= 2) {
    for (int i = 0; i < 2; ++i) {
      typename Warp::template Lanes<float> sum, zeros;
      warp.each([&](int lane) {
        sum[lane] = all.rows[lane].sum[i];
        zeros[lane] = all.rows[lane].zeros[i];
      });
      const auto other_sum = warp.exchange(sum, mask), other_zeros = warp.exchange(zeros, mask);
      warp.each([&](int lane) {
        all.rows[lane].sum[i] += other_sum[lane];
        all.rows[lane].zeros[i] += other_zeros[lane];
      });
    }
  }
  auto* sums = reinterpret_cast<float*>(shared.turns) + warp.index() * kDirectRows * 16 * kSteps;
  auto* states = reinterpret_cast<float*>(part_of_warp(shared, warp.index()).exchange);
  warp.each([&](int lane) {
    const ThreadRows& rows = all.rows[lane];
    KVQUANT_UNROLL
    for (int i = 0; i < 4 * kSteps; ++i) {
      const int64_t row = lane % 4 * 2 + i % 2, channel = i / 4 * 16 + lane / 4 * 2 + i / 2 % 2;
      sums[row * 16 * kSteps + channel] = all.sums[i / 4][lane].sums[i % 4] + rows.zeros[i % 2];
    }
    for (int i = 0; i < 2 && lane < 4; ++i) {
      states[lane * 2 + i] = rows.max[i];
      states[kDirectRows + lane * 2 + i] = rows.sum[i];
    }
  });
}

// Sums and states of all warps, merged in their order, to `query` and `max`, `sum`.
KVQUANT_DEVICE void merge_warps(const TaskView& view, const DirectShared& shared, int thread) {
  const int64_t dim = view.call->head_dim;
  const auto* sums = reinterpret_cast<const float*>(shared.turns);
  for (int64_t i = thread; i < view.num_rows * dim; i += kBlockThreads) {
    const int64_t row = i / dim, channel = i % dim;
    SoftmaxState state;
    float sum = 0;
    for (int warp = 0; warp < kBlockWarps; ++warp) {
      const auto* states = reinterpret_cast<const float*>(part_of_warp(shared, warp).exchange);
      const MergeFactors factors = merge(state, {states[row], states[kDirectRows + row]});
      sum = sum * factors.keep + sums[(warp * kDirectRows + row) * dim + channel] * factors.add;
    }
    shared.query[row * shared.layout.query_stride + channel] = sum;
    if (channel > 0) continue;
    shared.max[row] = state.max;
    shared.sum[row] = state.sum;
  }
}

// What coded tiles gave as the beginning of the other tiles' sums.
template <int kColumnTiles, class Warp, class Sums>
KVQUANT_DEVICE void take_over_sums(const Warp& warp, const TaskView& view,
                                   const DirectShared& shared, Sums& sums) {
  warp.each([&](int lane) {
    KVQUANT_UNROLL
    for (int i = 0; i < kColumnTiles * 4; ++i) {
      const int64_t row = fragment_row(lane, i % 4);
      const int64_t channel =
          8 * (warp.index() + kBlockWarps * (i / 4)) + fragment_column(lane, i % 4);
      if (row >= view.num_rows || channel >= view.call->head_dim) continue;
      sums.tiles[0][i / 4][lane].sums[i % 4] =
          shared.query[row * shared.layout.query_stride + channel];
    }
  });
}

}  // namespace kvquant
