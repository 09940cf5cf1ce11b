// A task of few rows whose coded tiles are multiplied as their codes come from memory: a warp takes
// a whole tile, every fourth of a run, into registers, looks levels up in pairs
// (attend_cuda_lookup.h) and hands them to tensor cores. Nothing is decoded to shared memory, and
// warps wait for each other but where a run begins and at the end, when their sums are merged.
//
// While a tile's keys are worked on its values are on their way, and meanwhile the next one's keys.
// Tiles of other runs (sinks, tails, 8 bits, latents) come behind, as in attend_cuda_bf16.h.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_direct_merge.h"
#include "ops/attend_cuda_direct_values.h"

namespace kvquant {

// fn(bits) with the width of codes as a type.
template <int kBits>
struct CodeBits {
  static constexpr int kValue = kBits;
};
template <class Fn>
KVQUANT_DEVICE void with_bits(const CudaSide& side, Fn&& fn) {
  switch (side.shape.bits) {
    case 2: return fn(CodeBits<2>());
    case 3: return fn(CodeBits<3>());
    default: return fn(CodeBits<4>());
  }
}

// What of a tile is on its way to a warp's threads, or has arrived.
template <class Warp, int kSteps>
struct FetchedTile {
  typename Warp::template Lanes<ThreadCodes<kSteps>> keys, values;
  typename Warp::template Lanes<ThreadTokens> tokens;
};

template <class Warp, int kSteps>
KVQUANT_DEVICE void fetch_tile_keys(const Warp& warp, const CudaRun& run, const DirectTile& tile,
                                    FetchedTile<Warp, kSteps>& fetched) {
  const uint32_t* words = tile.keys.words;
  with_bits(run.keys, [&](auto bits) {
    warp.each(
        [&](int lane) { fetch_keys<decltype(bits)::kValue>(words, lane, fetched.keys[lane]); });
  });
}

template <class Warp, int kSteps>
KVQUANT_DEVICE void fetch_tile_values(const Warp& warp, const CudaTile& tile,
                                      FetchedTile<Warp, kSteps>& fetched) {
  with_bits(tile.run->values, [&](auto bits) {
    warp.each([&](int lane) {
      fetch_values<decltype(bits)::kValue>(tile.values.words, lane, fetched.values[lane]);
    });
  });
  warp.each([&](int lane) {
    fetch_tokens(tile, lane, fetched.tokens[lane]);
    ask_for_outliers(tile.keys, lane);
    ask_for_outliers(tile.values, lane);
  });
}

// Scores of a tile, without corrections and biases.
template <int kSteps, class Warp>
KVQUANT_DEVICE void find_direct_scores(
    const Warp& warp, const DirectWarpShared& own, const CudaTile& tile,
    const FetchedTile<Warp, kSteps>& fetched,
    typename Warp::template Lanes<FragmentC> (&scores)[kTileSlots]) {
  typename Warp::template Lanes<FragmentB> query[kSteps];
  turn_queries<kSteps>(warp, tile, own, query);
  with_bits(tile.run->keys, [&](auto bits) {
    add_scores<decltype(bits)::kValue, kSteps>(warp, own, fetched.keys, query, scores);
  });
}

// A tile's values, weighted, to what the warp has.
template <int kSteps, class Warp, class Sums>
KVQUANT_DEVICE void add_weighted_values(const Warp& warp, const TaskView& view,
                                        const DirectWarpShared& own, const CudaTile& tile,
                                        const FetchedTile<Warp, kSteps>& fetched, Sums& all) {
  warp.each([&](int lane) {
    KVQUANT_UNROLL
    for (int m = 0; m < kSteps; ++m) {
      for (int i = 0; i < 4; ++i) all.sums[m][lane].sums[i] *= all.rows[lane].factors[i % 2];
    }
  });
  with_bits(tile.run->values, [&](auto bits) {
    add_direct_values<decltype(bits)::kValue, kSteps>(warp, own, fetched.values, all.sums);
  });
  if (tile.values.num_outliers == 0) return;
  typename Warp::template Lanes<float> bounds;
  warp.each([&](int lane) { bounds[lane] = bound_of(fetched.tokens[lane]); });
  const float step = correct_sums(warp, view, tile, own, warp.max(bounds));
  add_sum_corrections<kSteps>(warp, own, step, all.sums);
}

// Where the tiles of a span are, one a thread. Requires at most kSpanTiles.
KVQUANT_DEVICE void find_span(const CudaSpans& spans, const CudaSpan& span,
                              const DirectShared& shared, int thread) {
  const int64_t index = span.tiles.begin + thread;
  if (index >= span.tiles.end) return;
  const CudaTile tile = spans.find(*span.run, index);
  const auto parts = [](const CudaCodes& codes) {
    return DirectCodes{codes.words, codes.scales, codes.zeros, codes.first_outlier,
                       codes.num_outliers};
  };
  shared.tiles[thread] = {tile.tokens, parts(tile.keys), parts(tile.values)};
}

// What `like`, a tile of the same run and head, has of its own, replaced.
KVQUANT_DEVICE CudaTile other_tile(const CudaTile& like, int64_t index, const DirectTile& parts) {
  CudaTile tile = like;
  const auto replace = [](CudaCodes& codes, const DirectCodes& by) {
    codes.words = by.words;
    codes.scales = by.scales;
    codes.zeros = by.zeros;
    codes.first_outlier = by.first_outlier;
    codes.num_outliers = by.num_outliers;
  };
  tile.index = index;
  tile.tokens = parts.tokens;
  replace(tile.keys, parts.keys);
  replace(tile.values, parts.values);
  return tile;
}

// Every fourth tile of a span, from the warp's own on.
template <int kSteps, class Warp, class Sums>
KVQUANT_DEVICE void attend_span(const Warp& warp, const TaskView& view, const CudaSpan& span,
                                const CudaTile& first, const DirectShared& shared, Sums& all) {
  const auto num_tiles = static_cast<int>(span.tiles.end - span.tiles.begin);
  if (warp.index() >= num_tiles) return;
  const DirectWarpShared own = part_of_warp(shared, warp.index());
  FetchedTile<Warp, kSteps> fetched;
  fetch_tile_keys(warp, *span.run, shared.tiles[warp.index()], fetched);
  const Half* scales = nullptr;
  float key_bound = 0;
  for (int i = warp.index(); i < num_tiles; i += kBlockWarps) {
    const CudaTile tile = other_tile(first, span.tiles.begin + i, shared.tiles[i]);
    fetch_tile_values(warp, tile, fetched);
    if (tile.keys.scales != scales) {
      scales = tile.keys.scales;
      key_bound = load_key_params(warp, view, tile, own);
    }
    typename Warp::template Lanes<FragmentC> scores[kTileSlots];
    find_direct_scores<kSteps>(warp, own, tile, fetched, scores);
    if (tile.keys.num_outliers > 0) {
      const float step = correct_scores(warp, view, tile, own, key_bound);
      add_score_corrections(warp, own, step, scores);
    }
    if (i + kBlockWarps < num_tiles) {
      fetch_tile_keys(warp, *span.run, shared.tiles[i + kBlockWarps], fetched);
    }
    finish_scores(warp, view, tile, own, scores, all.rows);
    find_direct_weights(warp, tile, own, fetched.tokens, scores, all.rows);
    add_weighted_values<kSteps>(warp, view, own, tile, fetched, all);
  }
}

// Task block.index() of the call. Requires head_dim 16 kSteps, at most kDirectRows rows.
template <int kSteps, class Block>
KVQUANT_DEVICE void attend_task_direct(const Block& block, const CudaAttend& call) {
  constexpr int kColumnTiles = (kSteps + 1) / 2;
  const TaskView view = view_task(call, block.index());
  const DirectShared direct = slice_direct(block.shared(), call.head_dim, call.direct_bits);
  typename Block::template PerWarp<DirectSums<Block, kSteps>> coded;
  block.warp_phase([&](auto warp) { load_direct_queries(warp, view, direct); });
  CudaSpans spans(*view.job, call.runs, *view.task);
  for (CudaSpan span; spans.next(span);) {
    if (!is_direct(*span.run)) continue;
    const CudaTile first = spans.find(*span.run, span.tiles.begin);
    block.phase([&](int thread) {
      find_span(spans, span, direct, thread);
      fill_pairs(first, direct, thread);
      fill_turns(*span.run, call.head_dim, direct, thread);
    });
    block.warp_phase(
        [&](auto warp) { attend_span<kSteps>(warp, view, span, first, direct, coded[warp]); });
  }
  block.warp_phase([&](auto warp) { hand_over_sums<kSteps>(warp, direct, coded[warp]); });
  block.phase([&](int thread) { merge_warps(view, direct, thread); });

  const auto shared = task_shared<Bf16Pair>(block.shared() + direct.layout.rest, view, kCudaFewRows,
                                            /*has_sums=*/false);
  typename Block::template PerWarp<WarpSums<Block, 1, kColumnTiles>> sums;
  block.phase([&](int thread) { clear_shared(shared, kCudaFewRows, thread); });
  block.warp_phase([&](auto warp) {
    take_over_sums<kColumnTiles>(warp, view, direct, sums[warp]);
    warp.each([&](int lane) {
      const int64_t row = warp.index() * kWarpThreads + lane;
      if (row >= view.num_rows) return;
      shared.max[row] = direct.max[row];
      shared.sum[row] = direct.sum[row];
    });
  });
  add_tiles_bf16<1, kColumnTiles>(block, view, shared, TileChoice::kNotDirect, sums);
}

}  // namespace kvquant
