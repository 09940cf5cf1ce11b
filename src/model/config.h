// Hyperparameters of a decoder-only transformer, read from config.json or GGUF metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/rope_scaling.h"

namespace kvquant {

struct ModelConfig {
  std::string architecture = "llama";  // "llama", "mistral", "qwen2" or "qwen3", for people
  std::string name;                    // for people: general.name or the folder's name
  int64_t hidden = 0;                  // width of the residual stream
  int64_t ffn = 0;                     // width of the MLP
  int64_t num_layers = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // multiple of 8
  int64_t vocab_size = 0;
  int64_t max_context = 0;     // tokens
  int64_t sliding_window = 0;  // tokens that a query sees, its own included; 0: all
  float rope_theta = 10000.0f;
  RopeScaling rope_scaling{};
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;
  bool qkv_bias = false;  // added to queries, keys and values
  bool qk_norm = false;   // RMSNorm of each head's queries and keys, before RoPE

  int64_t group() const { return num_q_heads / num_kv_heads; }
  int64_t kv_dim() const { return num_kv_heads * head_dim; }
};

inline constexpr int64_t kMaxContext = int64_t{1} << 30;  // tokens

// Throws FormatError, naming the value, when the numbers don't fit together.
void check_config(const ModelConfig& config, const std::string& path);

// How far yarn stretches a model: max_context, or factor times its original context if that is
// more. Requires: scaling without fault.
int64_t stretched_context(int64_t max_context, const RopeScaling& scaling);

// config.json of a Hugging Face directory: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM,
// Qwen3ForCausalLM. Refuses by name what is not supported: other architectures, biases other than
// of qwen2's queries, keys and values, sliding windows of some layers only, partial rotation, other
// RoPE scaling than rope_scaling.h has, other activations than silu, experts, caps and multipliers
// of logits.
ModelConfig config_from_json(const std::string& text, const std::string& path);

}  // namespace kvquant
