// Keys or values of a padded batch, quantized: dense codes of 2, 3 or 4 bits and a few outliers
// kept exactly. For those who hold whole tensors; the engine itself uses KvCache.
//
// Tensors are [batch, num_heads, seq_len, head_dim]. attention_mask [batch, seq_len] is 1 for real
// tokens, which are consecutive, and 0 for padding on either side or both; a row may have no real
// token; without data all tokens are real. Padding may hold anything, NaN too: it is not read.
//
// Of one head, all in f32, each operation rounded by itself:
//
//   y        = fl(x * fl(1 / scale))   0 where that quotient is infinite or the scale is 0
//   keys     outliers of a channel: the floor(fraction * len) largest |y| along the sequence of len
//            tokens, ties to the lower token
//   values   outliers of a token: the ceil(fraction * head_dim / 2) largest y and as many smallest
//            of its head_dim, ties to the lower channel; all of them when head_dim <= 2
//   code     nearest level of y, ties to the lower, also under an outlier; out of range: the end
//   decoded  fl(level * scale); an outlier is x to the bit
//
// What is stored of a sequence depends on its real tokens alone: not on padding, not on the batch.
// Not thread-safe: appends need exclusive access, reads may share.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvquant/codebook.h"
#include "kvquant/sparse.h"
#include "kvquant/tensor_view.h"

namespace kvquant {

enum class CacheSide { kKeys, kValues };

struct KVQuantizerOptions {
  std::vector<float> codebook = {};          // 4, 8 or 16 ascending levels in [-1, 1]
  LayerScalingFactors scaling_factors = {};  // of x's heads and head_dim, or empty: all 1
  double outlier_fraction = 0.01;            // in [0, 0.05], used in steps of 1e-8
  int64_t block_size = 256;                  // tokens, a multiple of 64 from 64 to 1024
  friend bool operator==(const KVQuantizerOptions&, const KVQuantizerOptions&) = default;
};

// Which |y| of a key channel are outliers, whatever comes later: those above `magnitude`, and the
// first `ties` of a sequence that equal it. This selects the outliers of the sequence's first call
// again, and later tokens by the same measure, so that earlier codes never change. The first call
// with real tokens sets it: `magnitude` is its smallest outlier's; when it was too short to have
// one, its largest |y|, but at least 1, the end of the codebook's range; fraction 0: infinity.
struct KeyThresholds {
  std::vector<float> magnitudes;  // [batch, num_heads, head_dim], not NaN, >= 0
  std::vector<int32_t> ties;      // the same; -1 for all of a sequence: not set yet
  friend bool operator==(const KeyThresholds&, const KeyThresholds&) = default;
};

struct QuantizedStore;  // src/cache/quantized_store.h

// Keys or values of a batch. Codes are packed in tiles of 64 tokens, tiles in blocks of block_size
// tokens; nothing of the padding is stored and nothing moves when tokens are appended. Views have
// the positions of the padded tensors: those appended later follow at seq_len.
class QuantizedKVCache {
 public:
  explicit QuantizedKVCache(std::unique_ptr<QuantizedStore> store);
  QuantizedKVCache(QuantizedKVCache&&) noexcept;
  QuantizedKVCache& operator=(QuantizedKVCache&&) noexcept;
  ~QuantizedKVCache();

  CacheSide side() const;
  int64_t batch() const;
  int64_t num_heads() const;
  int64_t seq_len() const;  // positions, with padding
  int64_t head_dim() const;
  int bits() const;
  const KVQuantizerOptions& options() const;

  std::vector<int64_t> seq_lengths() const;        // [batch], real tokens
  std::span<const float> codebook() const;         // [2^bits]
  std::vector<float> scaling_factors() const;      // [num_heads, head_dim]
  std::vector<uint8_t> quantized_indices() const;  // [batch, num_heads, seq_len, head_dim]
  std::vector<uint8_t> outlier_mask() const;       // the same shape, 0 or 1
  std::vector<float> outlier_values() const;       // the same shape, 0 where there is none
  const KeyThresholds& key_thresholds() const;     // empty for values

  // Packed codes of the tile of 64 tokens that starts at the sequence's real token 64 * tile, as
  // src/formats/code_planes.h has them. Throws std::invalid_argument when there is no such tile.
  std::span<const uint8_t> code_tile(int64_t sequence, int64_t head, int64_t tile) const;

  // Outliers of one head of one sequence, by real token and channel.
  const BlockedTokens& outliers(int64_t sequence, int64_t head) const;

  // Allocated bytes, exactly, without what malloc adds to an allocation.
  int64_t memory_bytes() const;

  // For the library's own code.
  const QuantizedStore& store() const { return *store_; }
  QuantizedStore& store() { return *store_; }

 private:
  std::unique_ptr<QuantizedStore> store_;
};

// Real tokens of each row of a mask [batch, seq_len]. Throws std::invalid_argument, naming row and
// position, for values other than 0 and 1 and for holes, as all functions with a mask do.
std::vector<int64_t> get_sequence_lengths(TensorView<const uint8_t, 2> attention_mask);

// Quantizes a batch, or one sequence [num_heads, seq_len, head_dim] without padding, in one pass
// over x (keys: a second one to find thresholds). `thresholds` are for keys only: of the same
// batch, or empty, to find them. Throw std::invalid_argument for options that break their rules,
// shapes that differ, and values that are not finite (naming batch, head, token, channel);
// OutOfMemory.
QuantizedKVCache fused_quantize_batch(CacheSide side, TensorView<const float, 4> x,
                                      TensorView<const uint8_t, 2> attention_mask,
                                      const KVQuantizerOptions& options,
                                      const KeyThresholds& thresholds = {});
QuantizedKVCache fused_quantize(CacheSide side, TensorView<const float, 3> x,
                                const KVQuantizerOptions& options,
                                const KeyThresholds& thresholds = {});

// Adds tokens to every sequence (or to none, where the mask says so) with the cache's own options.
// Earlier bytes stay as they are, and all bytes are those of quantizing everything at once with
// cache.key_thresholds(). Throws as above; on std::invalid_argument the cache is unchanged, after
// OutOfMemory it must be dropped.
void fused_append_batch(QuantizedKVCache& cache, TensorView<const float, 4> x,
                        TensorView<const uint8_t, 2> attention_mask);

// Decoded [batch, num_heads, seq_len, head_dim], zeros in padding; of a single sequence
// [num_heads, seq_len, head_dim]. Throws OutOfMemory, and fused_dequantize std::invalid_argument
// for a batch other than 1.
std::vector<float> fused_dequantize_batch(const QuantizedKVCache& cache);
std::vector<float> fused_dequantize(const QuantizedKVCache& cache);

// The functions above with their options kept.
class BatchedKVQuantizer {
 public:
  // `codebook` is "nuq2", "nuq3" or "nuq4" (its heuristic levels) or the levels themselves. Throws
  // std::invalid_argument for options that break their rules.
  explicit BatchedKVQuantizer(std::string_view codebook, LayerScalingFactors scaling_factors = {},
                              double outlier_fraction = 0.01, int64_t block_size = 256);
  explicit BatchedKVQuantizer(std::vector<float> codebook, LayerScalingFactors scaling_factors = {},
                              double outlier_fraction = 0.01, int64_t block_size = 256);

  const KVQuantizerOptions& options() const { return options_; }

  QuantizedKVCache quantize_keys(TensorView<const float, 4> x,
                                 TensorView<const uint8_t, 2> attention_mask = {},
                                 const KeyThresholds& thresholds = {}) const;
  QuantizedKVCache quantize_values(TensorView<const float, 4> x,
                                   TensorView<const uint8_t, 2> attention_mask = {}) const;

  // As fused_append_batch. Also throw std::invalid_argument when the cache has other options than
  // this quantizer or is of the other side.
  void append_keys(QuantizedKVCache& cache, TensorView<const float, 4> x,
                   TensorView<const uint8_t, 2> attention_mask = {}) const;
  void append_values(QuantizedKVCache& cache, TensorView<const float, 4> x,
                     TensorView<const uint8_t, 2> attention_mask = {}) const;

  std::vector<float> dequantize(const QuantizedKVCache& cache) const {
    return fused_dequantize_batch(cache);
  }

  // Outliers of a head, a matrix for each sequence of the batch: channels by real tokens for keys,
  // real tokens by channels for values. Throw std::invalid_argument for the other side and for
  // heads that there are not.
  std::vector<BlockedCSCMatrix> extract_key_outliers_to_sparse(const QuantizedKVCache& cache,
                                                               int64_t head_idx) const;
  std::vector<BlockedCSRMatrix> extract_value_outliers_to_sparse(const QuantizedKVCache& cache,
                                                                 int64_t head_idx) const;

 private:
  KVQuantizerOptions options_;
};

}  // namespace kvquant
