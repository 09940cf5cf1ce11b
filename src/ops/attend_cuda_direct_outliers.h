// What outliers change: an outlier's own number less what the code below it gives, times the
// query's or the weight's, added to a score or a weighted sum. These differences are added up as
// whole numbers of a step that is fine enough for all of a tile, so that their order is no matter.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_direct_keys.h"

namespace kvquant {

// A number has at most as many steps; at most 2^7 of them are added up, each times 1 at most.
inline constexpr float kStepsToBound = 0x1p22f;

// By all threads of a warp, each for 8 outliers; those behind come when they are read.
KVQUANT_DEVICE void ask_for_outliers(const CudaCodes& codes, int lane) {
  if (8 * lane >= codes.num_outliers) return;
  const uint32_t entry = codes.first_outlier + static_cast<uint32_t>(8 * lane);
  ask_for(codes.pages[entry / kOutliersPerPage]->entries + entry % kOutliersPerPage);
}

// Sets corrections to 0. Returns the largest magnitude among a tile's outliers.
template <class Warp>
KVQUANT_DEVICE float begin_corrections(const Warp& warp, const CudaCodes& codes,
                                       int num_corrections, const DirectWarpShared& own) {
  typename Warp::template Lanes<float> largest;
  warp.phase([&](int lane) {
    for (int i = lane; i < num_corrections / 4; i += kWarpThreads) {
      reinterpret_cast<Words4*>(own.corrections)[i] = {};
    }
    for (int i = lane; i < codes.num_outliers; i += kWarpThreads) {
      const float x = widen(outlier_at(codes, i).value);
      largest[lane] = std::fmax(largest[lane], std::fabs(x));
    }
  });
  return warp.max(largest);
}

// To scores, in units of queries over their row's scale times a quarter of keys. key_bound: how
// large in these units keys are that codes stand for. Returns the step.
template <class Warp>
KVQUANT_DEVICE float correct_scores(const Warp& warp, const TaskView& view, const CudaTile& tile,
                                    const DirectWarpShared& own, float key_bound) {
  const float largest = begin_corrections(warp, tile.keys, kDirectRows * kCorrectionStride, own);
  const float step = power_above(largest * kKeyFraction + key_bound) / kStepsToBound;
  const float inverse = 1 / step;
  const auto num_rows = static_cast<int>(view.num_rows);
  const int half = view.call->head_dim / 2;
  const float level = low_of(HalfPair{*reinterpret_cast<const uint32_t*>(own.pairs)});
  warp.phase([&](int lane) {
    for (int i = lane; i < tile.keys.num_outliers; i += kWarpThreads) {
      const OutlierEntry entry = outlier_at(tile.keys, i);
      const int token = entry.place % kTileTokens, channel = entry.place / kTileTokens;
      const bool is_high = channel >= half;
      const int c = is_high ? channel - half : channel;
      const HalfPair scale{own.params[c].words[0]}, zero{own.params[c].words[1]};
      const float coded = is_high ? std::fma(level, high_of(scale), high_of(zero))
                                  : std::fma(level, low_of(scale), low_of(zero));
      const float steps = (widen(entry.value) * kKeyFraction - coded) * inverse;
      const int of_thread = token % 16 / 2 * 4 + c % 16 / 4;
      const HalfPair turn{own.turns[turn_index(c / 16, c % 4, token % 2, of_thread) + token / 16]};
      for (int row = 0; row < num_rows; ++row) {
        const HalfPair query{own.exchange[row * (half + 4) + c]};
        const float x = is_high ? high_of(query) : low_of(query);
        const float y = is_high ? -low_of(query) : high_of(query);
        const float turned = std::fma(x, low_of(turn), y * high_of(turn));
        warp.add(own.corrections + row * kCorrectionStride + token,
                 static_cast<int32_t>(steps * turned));
      }
    }
  });
  return step;
}

// To weighted sums, with the weights of the rows behind the first eight of `exchange`. value_bound:
// how large values are that codes stand for. Returns the step.
template <class Warp>
KVQUANT_DEVICE float correct_sums(const Warp& warp, const TaskView& view, const CudaTile& tile,
                                  const DirectWarpShared& own, float value_bound) {
  const float largest =
      begin_corrections(warp, tile.values, kDirectRows * view.call->head_dim, own);
  const float step = power_above(largest + value_bound) / kStepsToBound;
  const float inverse = 1 / step;
  const auto num_rows = static_cast<int>(view.num_rows);
  const auto* levels = reinterpret_cast<const uint32_t*>(own.pairs) + kWarpThreads;
  const float level = widen(Bf16Pair{levels[0]}).first;
  warp.phase([&](int lane) {
    for (int i = lane; i < tile.values.num_outliers; i += kWarpThreads) {
      const OutlierEntry entry = outlier_at(tile.values, i);
      const int token = entry.place % kTileTokens, channel = entry.place / kTileTokens;
      const float coded =
          std::fma(level, widen(tile.values.scales[token]), widen(tile.values.zeros[token]));
      const float steps = (widen(entry.value) - coded) * inverse;
      for (int row = 0; row < num_rows; ++row) {
        const int at = (kDirectRows + row) * kPairStride + token / 2;
        const FloatPair weights = widen(Bf16Pair{own.exchange[at]});
        const float weight = token % 2 == 0 ? weights.first : weights.second;
        warp.add(own.corrections + channel * kDirectRows + row,
                 static_cast<int32_t>(steps * weight));
      }
    }
  });
  return step;
}

}  // namespace kvquant
