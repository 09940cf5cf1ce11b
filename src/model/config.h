// Hyperparameters of a decoder-only transformer, read from config.json or GGUF metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvquant {

struct ModelConfig {
  std::string architecture = "llama";
  std::string name;    // for people: general.name or the folder's name
  int64_t hidden = 0;  // width of the residual stream
  int64_t ffn = 0;     // width of the MLP
  int64_t num_layers = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // multiple of 8
  int64_t vocab_size = 0;
  int64_t max_context = 0;  // tokens
  float rope_theta = 10000.0f;
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;

  int64_t group() const { return num_q_heads / num_kv_heads; }
  int64_t kv_dim() const { return num_kv_heads * head_dim; }
};

// Throws FormatError, naming the value, when the numbers don't fit together.
void check_config(const ModelConfig& config, const std::string& path);

// config.json of a Hugging Face directory. Refuses by name what is not supported: architectures
// other than LlamaForCausalLM, rope_scaling, attention or MLP biases, activations other than silu.
ModelConfig config_from_json(const std::string& text, const std::string& path);

}  // namespace kvquant
