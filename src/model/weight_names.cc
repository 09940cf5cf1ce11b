#include "model/weight_names.h"

#include <algorithm>
#include <utility>

namespace kvquant {
namespace {

constexpr std::pair<std::string_view, std::string_view> kGlobalNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"attn_k_norm.weight", "self_attn.k_norm.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
};

}  // namespace

std::vector<NamedShape> llama_weights(const ModelConfig& config) {
  const int64_t q_dim = config.num_q_heads * config.head_dim;
  std::vector<NamedShape> weights;
  weights.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    weights.push_back({prefix + "input_layernorm.weight", {config.hidden}});
    weights.push_back({prefix + "self_attn.q_proj.weight", {q_dim, config.hidden}});
    weights.push_back({prefix + "self_attn.k_proj.weight", {config.kv_dim(), config.hidden}});
    weights.push_back({prefix + "self_attn.v_proj.weight", {config.kv_dim(), config.hidden}});
    if (config.qkv_bias) {
      weights.push_back({prefix + "self_attn.q_proj.bias", {q_dim}});
      weights.push_back({prefix + "self_attn.k_proj.bias", {config.kv_dim()}});
      weights.push_back({prefix + "self_attn.v_proj.bias", {config.kv_dim()}});
    }
    if (config.qk_norm) {
      weights.push_back({prefix + "self_attn.q_norm.weight", {config.head_dim}});
      weights.push_back({prefix + "self_attn.k_norm.weight", {config.head_dim}});
    }
    weights.push_back({prefix + "self_attn.o_proj.weight", {config.hidden, q_dim}});
    weights.push_back({prefix + "post_attention_layernorm.weight", {config.hidden}});
    weights.push_back({prefix + "mlp.gate_proj.weight", {config.ffn, config.hidden}});
    weights.push_back({prefix + "mlp.up_proj.weight", {config.ffn, config.hidden}});
    weights.push_back({prefix + "mlp.down_proj.weight", {config.hidden, config.ffn}});
  }
  weights.push_back({"model.norm.weight", {config.hidden}});
  if (!config.tied_embeddings) {
    weights.push_back({"lm_head.weight", {config.vocab_size, config.hidden}});
  }
  return weights;
}

std::string hugging_face_name(std::string_view gguf_name) {
  for (const auto& [gguf, hugging_face] : kGlobalNames) {
    if (gguf_name == gguf) return std::string(hugging_face);
  }
  constexpr std::string_view kPrefix = "blk.";
  if (gguf_name.substr(0, kPrefix.size()) != kPrefix) return "";
  const std::string_view rest = gguf_name.substr(kPrefix.size());
  const size_t dot = rest.find('.');
  if (dot == std::string_view::npos || dot == 0) return "";
  const std::string_view layer = rest.substr(0, dot);
  const bool digits =
      std::all_of(layer.begin(), layer.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!digits || (layer.size() > 1 && layer[0] == '0')) return "";
  for (const auto& [gguf, hugging_face] : kLayerNames) {
    if (rest.substr(dot + 1) == gguf) {
      return "model.layers." + std::string(layer) + "." + std::string(hugging_face);
    }
  }
  return "";
}

}  // namespace kvquant
