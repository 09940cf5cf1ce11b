// A task of attention with products on tensor cores: queries, keys, weights and values rounded to
// bf16, sums and softmax in f32.
//
// Of few rows, as in decode steps, what rounding took from a query is multiplied, too: it costs
// next to nothing there.
//
// A warp has the scores of 16 of the tile's tokens, and of the weighted sums every fourth group of
// 8 channels. Scores and weights go through shared memory.
#pragma once

#include <bit>
#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_load.h"

namespace kvquant {

// 16 rows and 16 columns of a matrix of pairs along rows.
template <class Warp>
KVQUANT_DEVICE void load_fragment(const Warp& warp, const Bf16Pair* matrix, int64_t stride,
                                  typename Warp::template Lanes<FragmentA>& fragment) {
  warp.each([&](int lane) {
    const Bf16Pair* at = matrix + lane / 4 * stride + lane % 4;
    fragment[lane] = {{at[0].bits, at[8 * stride].bits, at[4].bits, at[8 * stride + 4].bits}};
  });
}

// 16 rows and 8 columns of a matrix of pairs along columns.
template <class Warp>
KVQUANT_DEVICE void load_fragment(const Warp& warp, const Bf16Pair* matrix, int64_t stride,
                                  typename Warp::template Lanes<FragmentB>& fragment) {
  warp.each([&](int lane) {
    const Bf16Pair* at = matrix + lane % 4 * stride + lane / 4;
    fragment[lane] = {{at[0].bits, at[4 * stride].bits}};
  });
}

// Scores of 16 tokens, all rows.
template <int kRowTiles, class Warp>
KVQUANT_DEVICE void find_scores(const Warp& warp, const AttendShared<Bf16Pair>& shared) {
  const AttendSharedLayout& layout = shared.layout;
  const int first_token = warp.index() * 16;
  typename Warp::template Lanes<FragmentC> scores[kRowTiles][2];
  for (int64_t line = 0; line < layout.num_pairs; line += 8) {
    typename Warp::template Lanes<FragmentB> keys[2];
    for (int i = 0; i < 2; ++i) {
      load_fragment(warp, shared.keys + line * layout.key_stride + first_token + 8 * i,
                    layout.key_stride, keys[i]);
    }
    KVQUANT_UNROLL
    for (int tile = 0; tile < kRowTiles; ++tile) {
      typename Warp::template Lanes<FragmentA> query;
      load_fragment(warp, shared.query + 16 * tile * layout.query_stride + line,
                    layout.query_stride, query);
      warp.multiply(query, keys[0], scores[tile][0]);
      warp.multiply(query, keys[1], scores[tile][1]);
      load_fragment(warp, shared.query_rest + 16 * tile * layout.query_stride + line,
                    layout.query_stride, query);
      warp.multiply(query, keys[0], scores[tile][0]);
      warp.multiply(query, keys[1], scores[tile][1]);
    }
  }
  warp.each([&](int lane) {
    KVQUANT_UNROLL
    for (int i = 0; i < kRowTiles * 8; ++i) {
      const int tile = i / 8, column = i / 4 % 2, at = i % 4;
      const int64_t row = 16 * tile + fragment_row(lane, at);
      shared.scores[row * layout.score_stride + first_token + 8 * column +
                    fragment_column(lane, at)] = scores[tile][column][lane].sums[at];
    }
  });
}

// Weighted sums of a warp: of all rows, of channels 8 (warp + 4 i) and the next 7.
template <class Owner, int kRowTiles, int kColumnTiles>
struct WarpSums {
  typename Owner::template Lanes<FragmentC> tiles[kRowTiles][kColumnTiles];
};

template <int kRowTiles, int kColumnTiles, class Warp, class Sums>
KVQUANT_DEVICE void add_values(const Warp& warp, const AttendShared<Bf16Pair>& shared, Sums& sums) {
  const AttendSharedLayout& layout = shared.layout;
  warp.each([&](int lane) {
    KVQUANT_UNROLL
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const float* factors = shared.factors + 16 * tile + lane / 4;
      const float upper = factors[0], lower = factors[8];
      KVQUANT_UNROLL
      for (int column = 0; column < kColumnTiles; ++column) {
        float* at = sums.tiles[tile][column][lane].sums;
        for (int i = 0; i < 4; ++i) at[i] *= i < 2 ? upper : lower;
      }
    }
  });
  for (int line = 0; line < kTileTokens / 2; line += 8) {
    typename Warp::template Lanes<FragmentA> weights[kRowTiles];
    KVQUANT_UNROLL
    for (int tile = 0; tile < kRowTiles; ++tile) {
      load_fragment(warp, shared.weights + 16 * tile * layout.weight_stride + line,
                    layout.weight_stride, weights[tile]);
    }
    KVQUANT_UNROLL
    for (int column = 0; column < kColumnTiles; ++column) {
      const int64_t channel = 8 * (warp.index() + kBlockWarps * column);
      if (channel >= shared.value_dim) continue;  // the same for all threads of the warp
      typename Warp::template Lanes<FragmentB> values;
      load_fragment(warp, shared.values + line * layout.value_stride + channel, layout.value_stride,
                    values);
      KVQUANT_UNROLL
      for (int tile = 0; tile < kRowTiles; ++tile) {
        warp.multiply(weights[tile], values, sums.tiles[tile][column]);
      }
    }
  }
}

template <int kRowTiles, int kColumnTiles, class Warp, class Sums>
KVQUANT_DEVICE void store_sums(const Warp& warp, const TaskView& view,
                               const AttendShared<Bf16Pair>& shared, Sums& sums, int turn) {
  warp.each([&](int lane) {
    KVQUANT_UNROLL
    for (int i = 0; i < kRowTiles * kColumnTiles * 4; ++i) {
      const int tile = i / 4 / kColumnTiles, column = i / 4 % kColumnTiles, at = i % 4;
      const int64_t row = 16 * tile + fragment_row(lane, at);
      const int64_t channel = 8 * (warp.index() + kBlockWarps * column) + fragment_column(lane, at);
      if (row >= view.num_rows || channel >= shared.value_dim) continue;
      view.sums(row)[channel] = sums.tiles[tile][column][lane].sums[at] *
                                final_factor(view, shared, 16 * kRowTiles, row, turn);
    }
  });
}

// The chosen tiles of a task on top of what `sums` and the states of turn 0 hold already, and its
// results.
template <int kRowTiles, int kColumnTiles, class Block, class Sums>
KVQUANT_DEVICE void add_tiles_bf16(const Block& block, const TaskView& view,
                                   const AttendShared<Bf16Pair>& shared, TileChoice choice,
                                   Sums& sums) {
  constexpr int64_t kRoom = 16 * kRowTiles;
  const auto add_tile = [&](const CudaTile& tile, int old) {
    block.warp_phase([&](auto warp) { find_scores<kRowTiles>(warp, shared); });
    block.warp_phase([&](auto warp) { find_weights(warp, view, tile, shared, kRoom, old); });
    block.warp_phase(
        [&](auto warp) { add_values<kRowTiles, kColumnTiles>(warp, shared, sums[warp]); });
  };
  const int turn = each_tile(block, view, shared, choice, add_tile);
  block.warp_phase([&](auto warp) {
    store_sums<kRowTiles, kColumnTiles>(warp, view, shared, sums[warp], turn);
  });
  block.phase([&](int thread) {
    store_states(view, shared, kRoom, turn, thread);
    clear_latent_sums(view, thread);
  });
}

// Task block.index() of the call. Requires head_dim <= 32 kColumnTiles, at most 16 kRowTiles rows.
template <int kRowTiles, int kColumnTiles, class Block>
KVQUANT_DEVICE void attend_task_bf16(const Block& block, const CudaAttend& call) {
  constexpr int64_t kRoom = 16 * kRowTiles;
  const TaskView view = view_task(call, block.index());
  const auto shared = task_shared<Bf16Pair>(block.shared(), view, kRoom, /*has_sums=*/false);
  typename Block::template PerWarp<WarpSums<Block, kRowTiles, kColumnTiles>> sums;
  block.phase([&](int thread) { clear_shared(shared, kRoom, thread); });
  add_tiles_bf16<kRowTiles, kColumnTiles>(block, view, shared, TileChoice::kAll, sums);
}

}  // namespace kvquant
