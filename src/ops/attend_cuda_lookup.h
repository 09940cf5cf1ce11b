// Codes of a tile into registers, and from there to pairs of levels (attend_cuda_direct_shared.h).
//
// Thread g, t of a warp (g = lane / 4, t = lane % 4) has lanes 2g and 2g + 1 of code rows
// (code_planes.h): of keys rows 16j + 4t to 16j + 4t + 3, all that these tokens have of 4 pairs of
// channels; of values, in channels 16m to 16m + 15, the octets of tokens 2t and 2t + 1, or of 3
// bits, whose rows come in fours, octets 4 (t / 2) to 4 (t / 2) + 3 of lane 2g + t % 2 alone.
//
// The two codes of a look-up are neighbours in a word: slots 2i and 2i + 1 of one half.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda_direct_shared.h"
#include "ops/cuda_numbers.h"

namespace kvquant {

// Words of one side of a tile that a thread has; kSteps is head_dim / 16.
template <int kSteps>
struct ThreadCodes {
  uint32_t words[4 * kSteps] = {};
};

// Those of keys: word k of lane 2g + e and rows from 16j + 4t on at 2 (kBits j + k) + e.
template <int kBits, int kSteps>
KVQUANT_DEVICE void fetch_keys(const uint32_t* tile, int lane, ThreadCodes<kSteps>& codes) {
  const uint32_t* from = tile + lane % 4 * 16 * kBits + lane / 4 * 2;
  KVQUANT_UNROLL
  for (int i = 0; i < kSteps / 2 * kBits; ++i) {
    const Words2 words = stream_words2(from + (i / kBits * 64 * kBits + i % kBits * 16));
    codes.words[2 * i] = words.words[0];
    codes.words[2 * i + 1] = words.words[1];
  }
}

// Those of values, by channels 16m and on: of 3 bits the words of a row group, else the words of
// lanes 2g and 2g + 1, row by row.
template <int kBits, int kSteps>
KVQUANT_DEVICE void fetch_values(const uint32_t* tile, int lane, ThreadCodes<kSteps>& codes) {
  if constexpr (kBits == 3) {
    const uint32_t* from = tile + lane % 4 / 2 * 48 + lane / 4 * 2 + lane % 2;
    KVQUANT_UNROLL
    for (int i = 0; i < 3 * kSteps; ++i) {
      codes.words[i] = stream_word(from + (i / 3 * 96 + i % 3 * 16));
    }
  } else {
    constexpr int kRows = kBits / 2;  // with 2 bits a word has two rows
    const uint32_t* from = tile + lane % 4 * 16 * kRows + lane / 4 * 2;
    KVQUANT_UNROLL
    for (int i = 0; i < kRows * kSteps; ++i) {
      const Words2 words = stream_words2(from + (i / kRows * 64 * kRows + i % kRows * 16));
      codes.words[2 * i] = words.words[0];
      codes.words[2 * i + 1] = words.words[1];
    }
  }
}

// The fourth of four rows of 3 bits, as the others are.
KVQUANT_DEVICE uint32_t fourth_row(uint32_t a, uint32_t b, uint32_t c) {
  return (a >> 12 & 0x00070007) | (b >> 9 & 0x00380038) | (c >> 6 & 0x01C001C0) |
         (a >> 6 & 0x02000200) | (b >> 5 & 0x04000400) | (c >> 4 & 0x08000800);
}

// Where a row's codes of both halves begin in a word.
struct CodeRow {
  uint32_t word;
  int shift;
};

// Row `row` (below 4) of words of one lane, `stride` apart.
template <int kBits>
KVQUANT_DEVICE CodeRow code_row(const uint32_t* words, int stride, int row) {
  if constexpr (kBits == 2) return {words[row / 2 * stride], row % 2 * 8};
  if constexpr (kBits == 4) return {words[row * stride], 0};
  if (row < 3) return {words[row * stride], 0};
  return {fourth_row(words[0], words[stride], words[2 * stride]), 0};
}

// Where a thread looks up levels of one side.
struct PairTable {
  const std::byte* pairs;
  uint32_t place;  // of the thread in an entry, bytes
};

KVQUANT_DEVICE PairTable pair_table(const DirectShared& shared, KvSide side, int lane) {
  return {shared.pairs, static_cast<uint32_t>(side == KvSide::kKey ? 0 : kWarpThreads * 4) +
                            static_cast<uint32_t>(lane) * 4};
}

// Levels of the two codes from bit `at` on.
template <int kBits>
KVQUANT_DEVICE uint32_t look_up(const PairTable& table, uint32_t word, int at) {
  static_assert(kPairEntryBytes == 256);
  uint32_t offset = 0;
  if constexpr (kBits == 4) {
    offset = byte_permute(word, table.place, 0x5504u | static_cast<uint32_t>(at / 8) << 4);
  } else {
    constexpr uint32_t kMask = ((1u << 2 * kBits) - 1) << 8;
    offset = ((at <= 8 ? word << (8 - at) : word >> (at - 8)) & kMask) | table.place;
  }
  return *reinterpret_cast<const uint32_t*>(table.pairs + offset);
}

// The table of a run as its tile has it, one part for each thread.
KVQUANT_DEVICE void fill_pairs(const CudaTile& tile, const DirectShared& shared, int thread) {
  const auto fill = [&](int bits, const float* levels, int64_t first_word, auto&& pair_of) {
    for (int i = thread; i < 8 << 2 * bits; i += kBlockThreads) {  // 4 words each
      const int first = i / 8 & ((1 << bits) - 1), second = i / 8 >> bits;
      const uint32_t pair = pair_of(levels[first], levels[second]);
      auto* entry = reinterpret_cast<Words4*>(shared.pairs + i / 8 * kPairEntryBytes);
      entry[first_word / 4 + i % 8] = {{pair, pair, pair, pair}};
    }
  };
  fill(tile.run->keys.shape.bits, tile.keys.codebook->levels, 0,
       [](float a, float b) { return half_pair(a, b).bits; });
  fill(tile.run->values.shape.bits, tile.values.codebook->levels, kWarpThreads,
       [](float a, float b) {
         Bf16Pair pair;
         set_pair(pair, a, b);
         return pair.bits;
       });
}

}  // namespace kvquant
