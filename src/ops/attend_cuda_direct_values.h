// Weighted sums of a tile's coded values, by one warp. With level l, scale s and
// zero point z of a token, p its weight: the sum of p (s l + z) is that of (p s) l, a product on
// tensor cores with p s rounded to bf16 and the levels looked up as bf16, and that of p z.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_direct_weights.h"

namespace kvquant {

// Weights as right factors, in the order in which a thread has the codes of values.
template <int kBits, class Warp>
KVQUANT_DEVICE void load_direct_weights(const Warp& warp, const DirectWarpShared& own,
                                        typename Warp::template Lanes<FragmentB> (&weights)[4]) {
  warp.phase([&](int lane) {
    const uint32_t* row = own.exchange + lane / 4 * kPairStride;
    const auto octet = [&](int i) { return *reinterpret_cast<const Words4*>(row + 4 * i); };
    if constexpr (kBits == 3) {
      const uint32_t halves = lane % 2 == 0 ? 0x5410 : 0x7632;
      KVQUANT_UNROLL
      for (int r = 0; r < 4; ++r) {
        const Words4 x = octet(lane % 4 / 2 * 4 + r);
        weights[r][lane].pairs[0] = byte_permute(x.words[0], x.words[1], halves);
        weights[r][lane].pairs[1] = byte_permute(x.words[2], x.words[3], halves);
      }
    } else {
      KVQUANT_UNROLL
      for (int u = 0; u < 2; ++u) {
        const Words4 x = octet(lane % 4 * 2 + u);
        KVQUANT_UNROLL
        for (int i = 0; i < 2; ++i) {
          weights[i][lane].pairs[u] = lower_halves(x.words[2 * i], x.words[2 * i + 1]);
          weights[2 + i][lane].pairs[u] = upper_halves(x.words[2 * i], x.words[2 * i + 1]);
        }
      }
    }
  });
}

// Levels of channels 16 m and on as left factors, channel 2 g + odd in row g + 8 odd.
template <int kBits, int kSteps, class Warp>
KVQUANT_DEVICE void decode_values(const Warp& warp, const DirectWarpShared& own, int m,
                                  const typename Warp::template Lanes<ThreadCodes<kSteps>>& codes,
                                  typename Warp::template Lanes<FragmentA> (&values)[4]) {
  if constexpr (kBits == 3) {
    typename Warp::template Lanes<uint32_t> kept[2], sent[2];
    warp.each([&](int lane) {
      const uint32_t* words = codes[lane].words + 3 * m;
      const uint32_t own_halves = lane % 2 == 0 ? 0x5410 : 0x7632;
      kept[0][lane] = byte_permute(words[0], words[1], own_halves);
      sent[0][lane] = byte_permute(words[0], words[1], own_halves ^ 0x2222);
      kept[1][lane] = words[2] >> lane % 2 * 16 & 0xFFFF;
      sent[1][lane] = words[2] >> (16 - lane % 2 * 16) & 0xFFFF;
    });
    const auto other = warp.exchange(sent[0], 1), other_last = warp.exchange(sent[1], 1);
    warp.each([&](int lane) {
      const PairTable table = pair_table(own, KvSide::kValue, lane);
      KVQUANT_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const uint32_t a = lane % 2 == odd ? kept[0][lane] : other[lane];
        const uint32_t b = lane % 2 == odd ? kept[1][lane] : other_last[lane];
        const uint32_t fourth = (a >> 12 & 0x7) | (a >> 25 & 0x38) | (b >> 6 & 0x1C0) |
                                (a >> 6 & 0x200) | (a >> 21 & 0x400) | (b >> 4 & 0x800);
        const uint32_t rows[2] = {a, b | fourth << 16};
        KVQUANT_UNROLL
        for (int i = 0; i < 8; ++i) {
          values[i / 2][lane].pairs[odd + 2 * (i % 2)] =
              look_up<3>(table, rows[i / 4], i / 2 % 2 * 16 + i % 2 * 6);
        }
      }
    });
  } else {
    warp.each([&](int lane) {
      const PairTable table = pair_table(own, KvSide::kValue, lane);
      KVQUANT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int u = i / 2, odd = i % 2;
        const CodeRow from = code_row<kBits>(codes[lane].words + kBits * m + odd, 2, u);
        KVQUANT_UNROLL
        for (int k = 0; k < 4; ++k) {
          values[k][lane].pairs[odd + 2 * u] =
              look_up<kBits>(table, from.word, from.shift + k / 2 * 16 + k % 2 * 2 * kBits);
        }
      }
    });
  }
}

// In fragment m sums[i] are of channel 16 m + 2 g + i / 2 and query row 2 t + i % 2.
template <int kBits, int kSteps, class Warp>
KVQUANT_DEVICE void add_direct_values(
    const Warp& warp, const DirectWarpShared& own,
    const typename Warp::template Lanes<ThreadCodes<kSteps>>& codes,
    typename Warp::template Lanes<FragmentC> (&sums)[kSteps]) {
  typename Warp::template Lanes<FragmentB> weights[4];
  load_direct_weights<kBits>(warp, own, weights);
  KVQUANT_UNROLL
  for (int m = 0; m < kSteps; ++m) {
    typename Warp::template Lanes<FragmentA> values[4];
    decode_values<kBits, kSteps>(warp, own, m, codes, values);
    KVQUANT_UNROLL
    for (int k = 0; k < 4; ++k) warp.multiply(values[k], weights[k], sums[m]);
  }
}

template <int kSteps, class Warp>
KVQUANT_DEVICE void add_sum_corrections(const Warp& warp, const DirectWarpShared& own, float step,
                                        typename Warp::template Lanes<FragmentC> (&sums)[kSteps]) {
  warp.phase([&](int lane) {
    KVQUANT_UNROLL
    for (int i = 0; i < 2 * kSteps; ++i) {
      const int m = i / 2, odd = i % 2, channel = 16 * m + lane / 4 * 2 + odd;
      const int32_t* from = own.corrections + channel * kDirectRows + lane % 4 * 2;
      const Words2 steps = *reinterpret_cast<const Words2*>(from);
      KVQUANT_UNROLL
      for (int k = 0; k < 2; ++k) {
        float& x = sums[m][lane].sums[2 * odd + k];
        x = std::fma(static_cast<float>(static_cast<int32_t>(steps.words[k])), step, x);
      }
    }
  });
}

}  // namespace kvquant
