// The tiles of a task into shared memory, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_latent_keys.h"

namespace kvquant {

KVQUANT_DEVICE bool is_staged(const CudaSide& side, int32_t room) {
  return side.source == TileSource::kCoded && side.shape.has_codes() && room > 0;
}

// Asks for the codes of a tile.
template <class Block, class Pair>
KVQUANT_DEVICE void stage_codes(const Block& block, const CudaAttend& call, const CudaTile& tile,
                                const AttendShared<Pair>& shared, int thread) {
  const auto copy = [&](const CudaSide& side, const uint32_t* words, int32_t room, std::byte* to) {
    if (!is_staged(side, room)) return;
    const auto* from = reinterpret_cast<const std::byte*>(words);
    for (int64_t i = thread * kCopyBytes; i < side.layout.code_tile;
         i += kBlockThreads * kCopyBytes) {
      block.copy_ahead(to + i, from + i);
    }
  };
  copy(tile.run->keys, tile.keys.words, call.staged_key_bytes, shared.staged_keys);
  copy(tile.run->values, tile.values.words, call.staged_value_bytes, shared.staged_values);
}

// The tile with its codes where they have been copied to.
template <class Pair>
KVQUANT_DEVICE CudaTile staged(const CudaAttend& call, CudaTile tile,
                               const AttendShared<Pair>& shared) {
  if (is_staged(tile.run->keys, call.staged_key_bytes)) {
    tile.keys.words = reinterpret_cast<const uint32_t*>(shared.staged_keys);
  }
  if (is_staged(tile.run->values, call.staged_value_bytes)) {
    tile.values.words = reinterpret_cast<const uint32_t*>(shared.staged_values);
  }
  return tile;
}

// Everything that a tile's products read, but outliers; keys and values come after a barrier.
template <class Block, class Pair>
KVQUANT_DEVICE void load_tile(const Block& block, const TaskView& view, const CudaTile& tile,
                              const AttendShared<Pair>& shared, bool has_new_biases) {
  const bool has_latents = tile.run->has_latent_keys();
  block.phase([&](int thread) {
    block.await_copies();
    load_params(tile, shared, thread);
    if (!has_latents) load_queries(view, tile, shared, thread);
    if (has_new_biases) find_row_biases(view, tile, shared, thread);
  });
  block.phase([&](int thread) {
    has_latents ? load_latent_keys(tile, shared, thread) : load_keys(tile, shared, thread);
    load_values(tile, shared, thread);
  });
  if (tile.keys.num_outliers + tile.values.num_outliers == 0) return;
  block.phase([&](int thread) {
    has_latents ? place_latent_outliers(tile, shared, thread)
                : place_key_outliers(tile, shared, thread);
    place_value_outliers(tile, shared, thread);
  });
}

// fn(tile, turn) for each chosen tile of a task, loaded, `turn` being 0 and 1 in turns; returns the
// turn behind the last. While a tile is worked on, the next one's codes are on their way.
template <class Block, class Pair, class Fn>
KVQUANT_DEVICE int each_tile(const Block& block, const TaskView& view,
                             const AttendShared<Pair>& shared, TileChoice choice, Fn&& fn) {
  CudaTiles tiles({*view.job, view.call->runs, *view.task}, choice);
  CudaTile next;
  const Half* biased_scales = nullptr;
  int turn = 0;
  bool has_next = tiles.next(next);
  if (!has_next) return turn;
  if (next.run->has_latent_keys()) {  // so have all runs of the task
    block.phase([&](int thread) { project_queries(view, shared, thread); });
  }
  block.each([&](int thread) { stage_codes(block, *view.call, next, shared, thread); });
  while (has_next) {
    const CudaTile tile = staged(*view.call, next, shared);
    const bool has_new_biases = tile.keys.scales != nullptr && tile.keys.scales != biased_scales &&
                                !tile.run->has_latent_keys();
    load_tile(block, view, tile, shared, has_new_biases);
    if (has_new_biases) biased_scales = tile.keys.scales;
    has_next = tiles.next(next);
    if (has_next) {
      block.each([&](int thread) { stage_codes(block, *view.call, next, shared, thread); });
    }
    fn(tile, turn);
    turn = 1 - turn;
  }
  return turn;
}

}  // namespace kvquant
