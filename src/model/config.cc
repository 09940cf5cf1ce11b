#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/quote.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"
#include "model/rope_json.h"

namespace kvquant {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw FormatError(path + ": " + what);
}

void check_range(const char* what, int64_t value, int64_t low, int64_t high,
                 const std::string& path) {
  if (value < low || value > high) {
    fail(path, std::string(what) + " " + std::to_string(value) + " is not between " +
                   std::to_string(low) + " and " + std::to_string(high));
  }
}

enum class Windows {
  kNone,
  kAllLayers,   // when sliding_window is not null
  kLastLayers,  // when use_sliding_window is true, from layer max_window_layers on
};

// What an architecture of transformers is made of, and its defaults.
struct Architecture {
  const char* transformers_name;
  const char* name;
  Windows windows = Windows::kNone;
  bool qkv_bias = false;
  bool qk_norm = false;
  bool has_attention_bias = true;  // an option: the output projection has a bias, too
  bool may_lack_num_kv_heads = false;
  int64_t head_dim = 0;  // when it is absent; 0: hidden_size / num_attention_heads
};

constexpr Architecture kArchitectures[] = {
    {.transformers_name = "LlamaForCausalLM", .name = "llama", .may_lack_num_kv_heads = true},
    {.transformers_name = "MistralForCausalLM", .name = "mistral", .windows = Windows::kAllLayers},
    {.transformers_name = "Qwen2ForCausalLM",
     .name = "qwen2",
     .windows = Windows::kLastLayers,
     .qkv_bias = true,
     .has_attention_bias = false},
    {.transformers_name = "Qwen3ForCausalLM",
     .name = "qwen3",
     .windows = Windows::kLastLayers,
     .qk_norm = true,
     .head_dim = 128},
};

const Architecture& find_architecture(const Json& json, const std::string& path) {
  const auto found = json.find("architectures");
  if (found == json.end() || !found->is_array() || found->size() != 1 || !(*found)[0].is_string()) {
    fail(path, "architectures must be a list of one name");
  }
  const auto name = (*found)[0].get<std::string>();
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.transformers_name) return architecture;
  }
  std::string supported;
  for (const Architecture& architecture : kArchitectures) {
    supported += supported.empty() ? "" : ", ";
    supported += architecture.transformers_name;
  }
  fail(path, "architecture " + quote(name) + " is not supported; supported are " + supported);
}

// Options that change what the model computes and that this runtime does not have.
void refuse_unsupported(const Json& json, const Architecture& architecture,
                        const std::string& path) {
  for (const char* key : {"mlp_bias", "qk_layernorm", "use_qk_norm", "rope_interleaved",
                          "use_parallel_residual", "alibi"}) {
    if (json_boolean(json, key, path).value_or(false)) {
      fail(path, std::string(key) + " true is not supported");
    }
  }
  if (architecture.has_attention_bias &&
      json_boolean(json, "attention_bias", path).value_or(false)) {
    fail(path, "attention_bias true is not supported (it has a bias of the output projection)");
  }
  const auto activation = json_text(json, "hidden_act", path).value_or("silu");
  if (activation != "silu") {
    fail(path, "hidden_act " + quote(activation) + " is not supported; silu is");
  }
  for (const char* key : {"partial_rotary_factor", "embedding_multiplier", "residual_multiplier",
                          "logits_scaling", "logit_scale"}) {
    if (json_number(json, key, path).value_or(1.0) != 1.0) {
      fail(path, std::string(key) + " other than 1 is not supported");
    }
  }
  for (const char* key :
       {"attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "attention_multiplier",
        "query_pre_attn_scalar", "num_experts", "num_local_experts", "n_routed_experts"}) {
    if (json_number(json, key, path).value_or(0) != 0) {
      fail(path, std::string(key) + " is not supported");
    }
  }
  const auto quantization = json.find("quantization_config");
  if (quantization != json.end() && !quantization->is_null()) {
    fail(path, "quantization_config: quantized Hugging Face checkpoints are not supported");
  }
}

enum class LayerKind { kFull, kSliding, kMixed };

LayerKind combined(LayerKind a, LayerKind b) { return a == b ? a : LayerKind::kMixed; }

// layer_types of config.json, where it is there.
std::optional<LayerKind> listed_layers(const Json& json, int64_t num_layers,
                                       const std::string& path) {
  const auto found = json.find("layer_types");
  if (found == json.end() || found->is_null()) return std::nullopt;
  if (!found->is_array() || static_cast<int64_t>(found->size()) != num_layers) {
    fail(path, "layer_types is not a list of " + std::to_string(num_layers) + " names");
  }
  std::optional<LayerKind> all;
  for (const Json& type : *found) {
    const bool full = type == "full_attention";
    if (!full && type != "sliding_attention") {
      const std::string name = type.is_string() ? quote(type.get<std::string>()) : type.type_name();
      fail(path, "layer_types with " + name +
                     " is not supported; full_attention and sliding_attention are");
    }
    const LayerKind kind = full ? LayerKind::kFull : LayerKind::kSliding;
    all = combined(all.value_or(kind), kind);
  }
  return all;
}

// 0: every token is seen.
int64_t sliding_window(const Json& json, const Architecture& architecture, int64_t num_layers,
                       const std::string& path) {
  int64_t window = architecture.windows == Windows::kNone ? 0 : 4096;  // when it is absent
  if (const auto found = json.find("sliding_window"); found != json.end()) {
    window = json_integer(json, "sliding_window", path).value_or(0);
    if (window < 1 && !found->is_null()) {
      fail(path, "sliding_window " + std::to_string(window) + " is not above 0");
    }
  }
  LayerKind layers = LayerKind::kFull;
  switch (architecture.windows) {
    case Windows::kNone:
      if (window == 0) break;
      fail(path, std::string("sliding_window of a ") + architecture.transformers_name +
                     " is not supported");
    case Windows::kAllLayers: layers = LayerKind::kSliding; break;
    case Windows::kLastLayers: {
      if (!json_boolean(json, "use_sliding_window", path).value_or(false)) window = 0;
      const int64_t num_full = json_integer(json, "max_window_layers", path).value_or(28);
      layers = num_full <= 0            ? LayerKind::kSliding
               : num_full >= num_layers ? LayerKind::kFull
                                        : LayerKind::kMixed;
    }
  }
  const auto listed = listed_layers(json, num_layers, path);
  if (window == 0) {
    if (listed.value_or(LayerKind::kFull) == LayerKind::kFull) return 0;
    fail(path, "layer_types has sliding_attention, but there is no sliding window");
  }
  if (listed && architecture.windows == Windows::kAllLayers && *listed != layers) {
    fail(path, "layer_types and sliding_window contradict each other");
  }
  layers = listed.value_or(layers);
  if (layers == LayerKind::kMixed) {
    fail(path, std::string(listed ? "layer_types" : "max_window_layers") +
                   ": a sliding window of some layers is not supported");
  }
  return layers == LayerKind::kSliding ? window : 0;
}

int64_t head_dim_of(const Json& json, const Architecture& architecture, const ModelConfig& config,
                    const std::string& path) {
  if (const auto head_dim = json_integer(json, "head_dim", path)) return *head_dim;
  if (architecture.head_dim > 0) return architecture.head_dim;
  if (config.num_q_heads > 0 && config.hidden % config.num_q_heads == 0) {
    return config.hidden / config.num_q_heads;
  }
  fail(path, "hidden_size " + std::to_string(config.hidden) + " is not a multiple of " +
                 std::to_string(config.num_q_heads) + " attention heads");
}

}  // namespace

void check_config(const ModelConfig& config, const std::string& path) {
  // The limits are far above any model and keep products of two of them far below int64's.
  check_range("hidden size", config.hidden, 1, 1 << 20, path);
  check_range("feed-forward size", config.ffn, 1, 1 << 22, path);
  check_range("number of layers", config.num_layers, 1, 4096, path);
  check_range("number of query heads", config.num_q_heads, 1, 4096, path);
  check_range("number of key-value heads", config.num_kv_heads, 1, 4096, path);
  check_range("head_dim", config.head_dim, 8, 1024, path);
  check_range("vocabulary size", config.vocab_size, 1, 1 << 24, path);
  check_range("context length", config.max_context, 1, kMaxContext, path);
  if (config.num_q_heads % config.num_kv_heads != 0) {
    fail(path, std::to_string(config.num_q_heads) + " query heads are not a multiple of " +
                   std::to_string(config.num_kv_heads) + " key-value heads");
  }
  if (config.head_dim % 8 != 0) {
    fail(path, "head_dim " + std::to_string(config.head_dim) + " is not a multiple of 8");
  }
  if (!std::isfinite(config.rope_theta) || config.rope_theta <= 0) {
    fail(path, "rope_theta " + std::to_string(config.rope_theta) + " is not above 0 and finite");
  }
  const std::string fault =
      rope_scaling_fault(config.rope_scaling, config.rope_theta, config.head_dim);
  if (!fault.empty()) {
    fail(path,
         std::string("RoPE scaling ") + rope_scaling_name(config.rope_scaling.type) + ": " + fault);
  }
  check_range("sliding window", config.sliding_window, 0, kMaxContext, path);
  if (!std::isfinite(config.norm_eps) || config.norm_eps < 0 || config.norm_eps >= 1) {
    fail(path, "rms_norm_eps " + std::to_string(config.norm_eps) + " is not in [0, 1)");
  }
}

int64_t stretched_context(int64_t max_context, const RopeScaling& scaling) {
  if (scaling.type != RopeScalingType::kYarn) return max_context;
  const double stretched = scaling.factor * static_cast<double>(scaling.original_context);
  return std::max(max_context,
                  static_cast<int64_t>(std::min(stretched, static_cast<double>(kMaxContext))));
}

ModelConfig config_from_json(const std::string& text, const std::string& path) {
  const Json json = parse_json_object(text, path);
  const Architecture& architecture = find_architecture(json, path);
  refuse_unsupported(json, architecture, path);
  ModelConfig config;
  config.architecture = architecture.name;
  config.qkv_bias = architecture.qkv_bias;
  config.qk_norm = architecture.qk_norm;
  config.hidden = require_integer(json, "hidden_size", path);
  config.ffn = require_integer(json, "intermediate_size", path);
  config.num_layers = require_integer(json, "num_hidden_layers", path);
  config.num_q_heads = require_integer(json, "num_attention_heads", path);
  if (!json.contains("num_key_value_heads") && !architecture.may_lack_num_kv_heads) {
    fail(path, "num_key_value_heads is missing");
  }
  config.num_kv_heads =
      json_integer(json, "num_key_value_heads", path).value_or(config.num_q_heads);
  config.vocab_size = require_integer(json, "vocab_size", path);
  config.max_context = require_integer(json, "max_position_embeddings", path);
  config.head_dim = head_dim_of(json, architecture, config, path);
  config.sliding_window = sliding_window(json, architecture, config.num_layers, path);
  const RopeConfig rope = rope_from_json(json, config.max_context, path);
  config.rope_theta = static_cast<float>(rope.theta);
  config.rope_scaling = rope.scaling;
  config.norm_eps = static_cast<float>(json_number(json, "rms_norm_eps", path).value_or(1e-6));
  config.tied_embeddings = json_boolean(json, "tie_word_embeddings", path).value_or(false);
  check_config(config, path);
  config.max_context = stretched_context(config.max_context, config.rope_scaling);
  return config;
}

}  // namespace kvquant
