// What a QuantizedKVCache holds (kvquant/quantizer.h), and the two things done to it: tokens are
// appended, tiles are decoded.
//
//   head of a sequence   blocks of block_size / 64 code tiles (formats/code_planes.h), zeroed when
//                        they are made; outliers in a blocked sparse matrix
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "cache/padded_batch.h"
#include "cache/segmented_array.h"
#include "formats/code_planes.h"
#include "formats/nuq_codebook.h"
#include "kvquant/quantizer.h"

namespace kvquant {

// Tiles of either side lie as values do: head_dim may be any number here, odd ones too.
inline constexpr KvSide kStoreLayout = KvSide::kValue;

struct QuantizedSequence {
  int64_t num_tokens = 0;             // real ones
  std::vector<TokenRange> positions;  // where they are in the padded views, ascending
};

struct QuantizedStore {
  CacheSide side = CacheSide::kKeys;
  KVQuantizerOptions options;
  NuqCodebook book;
  int64_t num_heads = 0, head_dim = 0;
  int64_t seq_len = 0;                       // positions of the padded views
  std::vector<QuantizedSequence> sequences;  // [batch]

  // [batch, num_heads] each; outliers of one side only.
  std::vector<SegmentedArray<Buffer<uint8_t>>> blocks;
  std::vector<BlockedCSCMatrix> key_outliers;
  std::vector<BlockedCSRMatrix> value_outliers;

  // Keys: [batch, num_heads, head_dim].
  KeyThresholds thresholds;
  std::vector<int32_t> ties_left;  // of thresholds.ties, those that have not come yet

  int64_t batch() const { return static_cast<int64_t>(sequences.size()); }
  size_t head_index(int64_t sequence, int64_t head) const {
    return static_cast<size_t>(sequence * num_heads + head);
  }
  int64_t tile_bytes() const { return code_tile_bytes(book.bits, head_dim); }
  int64_t tiles_per_block() const { return options.block_size / kTileTokens; }
  const uint8_t* tile(int64_t sequence, int64_t head, int64_t index) const;
  uint8_t* tile(int64_t sequence, int64_t head, int64_t index);
  BlockedTokens& outliers(int64_t sequence, int64_t head);
  const BlockedTokens& outliers(int64_t sequence, int64_t head) const;
  float scale(int64_t head, int64_t channel) const;
};

// Throws std::invalid_argument unless the options keep their rules and fit these heads.
void check_quantizer_options(const KVQuantizerOptions& options);
void check_scales_fit(const LayerScalingFactors& scales, int64_t num_heads, int64_t head_dim);

// Appends the real tokens of x: what fused_append_batch says, after all checks. Throws OutOfMemory.
void append_quantized(QuantizedStore& store, BatchView x, const std::vector<TokenRange>& ranges);

// Levels times scales of one head's channels: [head_dim, kMaxLevels].
std::vector<float> scaled_levels(const QuantizedStore& store, int64_t head);

// Decodes the dense codes of a tile, without outliers: out[index(token, channel)] for 64 tokens,
// zero from num_tokens on.
template <class Index>
void decode_dense(const QuantizedStore& store, const uint8_t* tile, const float* scaled_levels,
                  int64_t num_tokens, Index index, float* out) {
  std::vector<uint8_t> tile_codes(static_cast<size_t>(store.head_dim * kTileTokens));
  read_codes(tile, kStoreLayout, store.book.bits, store.head_dim, tile_codes.data());
  for (int64_t c = 0; c < store.head_dim; ++c) {
    const uint8_t* codes = tile_codes.data() + c * kTileTokens;
    const float* levels = scaled_levels + c * kMaxLevels;
    for (int64_t t = 0; t < num_tokens; ++t) out[index(t, c)] = levels[codes[t]];
    for (int64_t t = num_tokens; t < kTileTokens; ++t) out[index(t, c)] = 0;
  }
}

// Calls set(token, channel, value) for every outlier of real tokens [first, end), ascending.
template <class Set>
void for_each_outlier(const BlockedTokens& outliers, int64_t first, int64_t end, Set set) {
  if (outliers.num_nonzeros() == 0) return;
  for (int64_t t = first; t < end; ++t) {
    if (outliers.num_nonzeros(t) == 0) continue;
    for (const SparsePiece& piece : outliers.pieces(t)) {
      for (int64_t i = 0; i < piece.count; ++i) set(t, piece.index(i), piece.value(i));
    }
  }
}

// Calls run(first_token, position, count) for every stretch of real tokens of the padded views.
template <class Run>
void for_each_run(const QuantizedSequence& sequence, Run run) {
  int64_t token = 0;
  for (const TokenRange& range : sequence.positions) {
    run(token, range.first, range.count);
    token += range.count;
  }
}

}  // namespace kvquant
