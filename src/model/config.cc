#include "model/config.h"

#include <cmath>

#include "base/quote.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

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

void check_architecture(const Json& json, const std::string& path) {
  const auto found = json.find("architectures");
  if (found == json.end() || !found->is_array() || found->size() != 1 || !(*found)[0].is_string()) {
    fail(path, "architectures must be a list of one name");
  }
  const auto name = (*found)[0].get<std::string>();
  if (name != "LlamaForCausalLM") {
    fail(path, "architecture " + quote(name) + " is not supported; LlamaForCausalLM is");
  }
}

// rope_scaling, or rope_parameters as transformers 5 writes it: null, or an object of the type
// "default" that may hold rope_theta.
void check_rope(const Json& json, const char* key, const std::string& path) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return;
  if (!found->is_object()) fail(path, std::string(key) + " is neither null nor an object");
  for (const char* type_key : {"rope_type", "type"}) {
    const auto type = json_text(*found, type_key, path);
    if (type && *type != "default") {
      fail(path, std::string(key) + " of type " + quote(*type) + " is not supported");
    }
  }
  for (const auto& [name, value] : found->items()) {
    if (name != "rope_type" && name != "type" && name != "rope_theta" &&
        !(name == "partial_rotary_factor" && value == 1.0)) {
      fail(path, std::string(key) + " with " + quote(name) + " is not supported");
    }
  }
}

double rope_theta(const Json& json, const std::string& path) {
  const auto parameters = json.find("rope_parameters");
  if (parameters != json.end() && parameters->is_object()) {
    if (const auto theta = json_number(*parameters, "rope_theta", path)) return *theta;
  }
  return json_number(json, "rope_theta", path).value_or(10000.0);
}

// Options that change what the model computes and that this runtime does not have.
void refuse_unsupported(const Json& json, const std::string& path) {
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (json_boolean(json, key, path).value_or(false)) {
      fail(path, std::string(key) + " true is not supported");
    }
  }
  const auto activation = json_text(json, "hidden_act", path).value_or("silu");
  if (activation != "silu") {
    fail(path, "hidden_act " + quote(activation) + " is not supported; silu is");
  }
  if (json_number(json, "partial_rotary_factor", path).value_or(1.0) != 1.0) {
    fail(path, "partial_rotary_factor other than 1 is not supported");
  }
  const auto quantization = json.find("quantization_config");
  if (quantization != json.end() && !quantization->is_null()) {
    fail(path, "quantization_config: quantized Hugging Face checkpoints are not supported");
  }
  check_rope(json, "rope_scaling", path);
  check_rope(json, "rope_parameters", path);
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
  check_range("context length", config.max_context, 1, int64_t{1} << 30, path);
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
  if (!std::isfinite(config.norm_eps) || config.norm_eps < 0 || config.norm_eps >= 1) {
    fail(path, "rms_norm_eps " + std::to_string(config.norm_eps) + " is not in [0, 1)");
  }
}

ModelConfig config_from_json(const std::string& text, const std::string& path) {
  const Json json = parse_json_object(text, path);
  check_architecture(json, path);
  refuse_unsupported(json, path);
  ModelConfig config;
  config.hidden = require_integer(json, "hidden_size", path);
  config.ffn = require_integer(json, "intermediate_size", path);
  config.num_layers = require_integer(json, "num_hidden_layers", path);
  config.num_q_heads = require_integer(json, "num_attention_heads", path);
  config.num_kv_heads =
      json_integer(json, "num_key_value_heads", path).value_or(config.num_q_heads);
  config.vocab_size = require_integer(json, "vocab_size", path);
  config.max_context = require_integer(json, "max_position_embeddings", path);
  if (const auto head_dim = json_integer(json, "head_dim", path)) {
    config.head_dim = *head_dim;
  } else if (config.num_q_heads > 0 && config.hidden % config.num_q_heads == 0) {
    config.head_dim = config.hidden / config.num_q_heads;
  } else {
    fail(path, "hidden_size " + std::to_string(config.hidden) + " is not a multiple of " +
                   std::to_string(config.num_q_heads) + " attention heads");
  }
  config.rope_theta = static_cast<float>(rope_theta(json, path));
  config.norm_eps = static_cast<float>(json_number(json, "rms_norm_eps", path).value_or(1e-6));
  config.tied_embeddings = json_boolean(json, "tie_word_embeddings", path).value_or(false);
  check_config(config, path);
  return config;
}

}  // namespace kvquant
