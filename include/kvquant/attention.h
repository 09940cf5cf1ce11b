// Attention over a padded batch whose keys and values are quantized from the first prompt token on.
//
// Strict: every query reads the decoded keys and values of all earlier tokens and of its own. Keys
// and queries are taken as attention multiplies them: the caller rotates both (RoPE), if at all.
//
//   out[i] = sum over j <= i of softmax_j(<q[i], k^[j]> / sqrt(head_dim)) v^[j]
//
// Query head h reads KV head h / (num_heads / num_kv_heads). Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kvquant/quantizer.h"

namespace kvquant {

struct PrefillAttentionOptions {
  // Of num_kv_heads and head_dim, for keys; empty: estimated, see below.
  LayerScalingFactors scaling_factors = {};
  LayerScalingFactors value_scaling_factors = {};  // empty: as scaling_factors, if they are given
  double outlier_fraction = 0.01;                  // these two as in KVQuantizerOptions
  int64_t block_size = 256;
  int64_t num_kv_heads = 0;  // divides num_heads; 0: num_heads
  int num_threads = 1;       // results don't depend on it; 0: one for each core
};

struct RoundTripError {
  double mse = 0;             // mean of (x - x^)^2
  double max_abs_error = 0;   // largest |x - x^|
  double relative_error = 0;  // |x - x^| / |x|, Euclidean norms; 0 when x is all zero
};

class PrefillQuantizedAttention {
 public:
  // `codebook` as for BatchedKVQuantizer; head_dim is a multiple of 8. Throws
  // std::invalid_argument.
  PrefillQuantizedAttention(int64_t num_heads, int64_t head_dim, std::string_view codebook,
                            const PrefillAttentionOptions& options = {});
  PrefillQuantizedAttention(int64_t num_heads, int64_t head_dim, std::vector<float> codebook,
                            const PrefillAttentionOptions& options = {});
  PrefillQuantizedAttention(PrefillQuantizedAttention&&) noexcept;
  PrefillQuantizedAttention& operator=(PrefillQuantizedAttention&&) noexcept;
  ~PrefillQuantizedAttention();

  // query [batch, num_heads, seq_len, head_dim], key and value [batch, num_kv_heads, seq_len,
  // head_dim], attention_mask [batch, seq_len] of these tokens. Returns [batch, num_heads, seq_len,
  // head_dim], zeros in padding. A prefill starts new caches; otherwise the tokens, any number, are
  // appended to the caches of the last prefill, and attend to all that is there.
  //
  // Scaling factors that were not given are estimated from the first prefill that has a real token,
  // keys and values apart, over the whole batch, and then frozen: of each channel, the magnitude
  // that all but outlier_fraction of its values stay within, so that [-1, 1] of the codebook covers
  // what is left beside outliers.
  //
  // Throws std::invalid_argument for shapes, masks and values as fused_quantize_batch does, and
  // when the first call is no prefill; the caches are then unchanged. After OutOfMemory they are
  // gone or must be replaced by a prefill.
  std::vector<float> forward(TensorView<const float, 4> query, TensorView<const float, 4> key,
                             TensorView<const float, 4> value,
                             TensorView<const uint8_t, 2> attention_mask, bool is_prefill);

  // Throw std::invalid_argument before the first prefill.
  const QuantizedKVCache& key_cache() const;
  const QuantizedKVCache& value_cache() const;

  // What quantizing these keys loses, over real tokens (none: zeros), with the key scales in use;
  // when there are none yet, with those that a prefill of these keys would choose.
  RoundTripError compute_round_trip_error(TensorView<const float, 4> keys,
                                          TensorView<const uint8_t, 2> attention_mask = {}) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvquant
