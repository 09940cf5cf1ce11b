// The weights of a Llama-style decoder, packed for the linear op: one fused matrix for query, key
// and value, gate and up side by side for the fused MLP.
#pragma once

#include <vector>

#include "base/threads.h"
#include "formats/precision.h"
#include "model/checkpoint.h"
#include "model/weight_groups.h"
#include "ops/linear.h"

namespace kvquant {

struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden]
  PackedMatrix qkv;                   // [(num_q_heads + 2 num_kv_heads) * head_dim, hidden]
  std::vector<float> qkv_bias;        // [(num_q_heads + 2 num_kv_heads) * head_dim], or empty
  std::vector<float> query_norm;      // [head_dim], or empty
  std::vector<float> key_norm;        // [head_dim], or empty
  PackedMatrix output;                // [hidden, num_q_heads * head_dim]
  std::vector<float> mlp_norm;        // [hidden]
  PackedMatrix gate, up;              // [ffn, hidden]
  PackedMatrix down;                  // [hidden, ffn]
};

struct ModelWeights {
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  PackedMatrix lm_head;           // [vocab_size, hidden], the embedding when tied

  int64_t num_bytes() const;
};

// Packs every matrix as `storage` says. kAuto: quantized tensors stay groups of 4, 5, 6 or 8-bit
// codes (K-quants at Precision::kF32 become f32, because groups round their scales), 16-bit ones
// become bf16 (f32 for F16 files at Precision::kF32, which bf16 could not hold), f32 ones follow
// the precision. Throws FormatError when a tensor is missing or holds values that are not finite.
ModelWeights load_weights(const Checkpoint& checkpoint, Precision precision, ThreadPool& pool,
                          WeightStorage storage = WeightStorage::kAuto);

}  // namespace kvquant
