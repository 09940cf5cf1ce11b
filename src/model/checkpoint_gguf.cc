// Llama checkpoints in GGUF files: metadata to config, names and row order to Hugging Face's.
#include <utility>

#include "base/quote.h"
#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"
#include "model/gguf_shards.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

[[noreturn]] void fail(const Gguf& gguf, const std::string& what) {
  throw FormatError(gguf.path() + ": " + what);
}

int64_t require(const Gguf& gguf, const std::string& key) {
  const auto value = gguf.integer(key);
  if (!value) fail(gguf, key + " is missing");
  return *value;
}

// Options that change what the model computes and that this runtime does not have.
void refuse_unsupported(const Gguf& gguf) {
  const auto scaling = gguf.text("llama.rope.scaling.type");
  if (scaling && *scaling != "none") {
    fail(gguf, "llama.rope.scaling.type " + quote(*scaling) + " is not supported");
  }
  for (const auto& [key, value] : gguf.metadata()) {
    if (key.starts_with("llama.rope.scal") && key != "llama.rope.scaling.type") {
      fail(gguf, quote(key) + " is not supported");
    }
  }
  for (const char* key : {"llama.expert_count", "llama.attention.sliding_window"}) {
    if (gguf.integer(key).value_or(0) != 0) fail(gguf, std::string(key) + " is not supported");
  }
  for (const char* key : {"llama.attention.scale", "llama.logit_scale", "llama.residual_scale",
                          "llama.embedding_scale"}) {
    if (gguf.has(key)) fail(gguf, std::string(key) + " is not supported");
  }
}

int64_t head_dim_of(const Gguf& gguf, const ModelConfig& config) {
  const auto length = gguf.integer("llama.attention.key_length");
  int64_t head_dim = 0;
  if (length) {
    head_dim = *length;
  } else if (config.num_q_heads > 0 && config.hidden % config.num_q_heads == 0) {
    head_dim = config.hidden / config.num_q_heads;
  } else {
    fail(gguf, "llama.embedding_length " + std::to_string(config.hidden) +
                   " is not a multiple of " + std::to_string(config.num_q_heads) + " heads");
  }
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"}) {
    const int64_t value = gguf.integer(key).value_or(head_dim);
    if (value != head_dim) {
      fail(gguf, std::string(key) + " " + std::to_string(value) + " is not the head_dim " +
                     std::to_string(head_dim));
    }
  }
  return head_dim;
}

std::map<std::string, StoredWeight> weights_of(const Gguf& gguf, const ModelConfig& config) {
  std::map<std::string, StoredWeight> weights;
  for (const GgufTensor& tensor : gguf.tensors()) {
    const std::string name = hugging_face_name(tensor.name);
    if (name.empty()) fail(gguf, "tensor " + quote(tensor.name) + " is not supported");
    const bool rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
    weights[name] = {tensor.shape, tensor.format, tensor.data, rotated ? config.head_dim : 0};
  }
  return weights;
}

std::vector<int32_t> eos_tokens(const Gguf& gguf, int64_t vocab_size) {
  std::vector<int32_t> ids;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = gguf.integer(key);
    if (!id) continue;
    if (*id < 0 || *id >= vocab_size) {
      fail(gguf, std::string(key) + " " + std::to_string(*id) + " is not in the vocabulary");
    }
    if (ids.empty() || ids[0] != *id) ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

}  // namespace

ModelConfig config_from_gguf(const Gguf& gguf) {
  const auto architecture = gguf.text("general.architecture").value_or("");
  if (architecture != "llama") {
    fail(gguf, "architecture " + quote(architecture) + " is not supported; llama is");
  }
  refuse_unsupported(gguf);
  ModelConfig config;
  config.name = gguf.text("general.name").value_or("");
  config.hidden = require(gguf, "llama.embedding_length");
  config.ffn = require(gguf, "llama.feed_forward_length");
  config.num_layers = require(gguf, "llama.block_count");
  config.num_q_heads = require(gguf, "llama.attention.head_count");
  config.num_kv_heads = gguf.integer("llama.attention.head_count_kv").value_or(config.num_q_heads);
  config.head_dim = head_dim_of(gguf, config);
  config.max_context = require(gguf, "llama.context_length");
  config.rope_theta = static_cast<float>(gguf.number("llama.rope.freq_base").value_or(10000.0));
  const auto eps = gguf.number("llama.attention.layer_norm_rms_epsilon");
  if (!eps) fail(gguf, "llama.attention.layer_norm_rms_epsilon is missing");
  config.norm_eps = static_cast<float>(*eps);
  config.tied_embeddings = true;
  for (const GgufTensor& tensor : gguf.tensors()) {
    if (tensor.name == "output.weight") config.tied_embeddings = false;
    if (tensor.name == "token_embd.weight") config.vocab_size = tensor.shape.front();
  }
  check_config(config, gguf.path());
  return config;
}

std::unique_ptr<Checkpoint> open_gguf_checkpoint(MappedFile file) {
  CheckpointParts parts;
  const Gguf gguf = open_gguf_shards(std::move(file), parts.files);
  parts.config = config_from_gguf(gguf);
  parts.weights = weights_of(gguf, parts.config);
  parts.eos_token_ids = eos_tokens(gguf, parts.config.vocab_size);
  try {
    parts.tokenizer = tokenizer_data_from_gguf(gguf);
  } catch (const FormatError& error) {
    parts.tokenizer_error = error.what();
  }
  return make_checkpoint(std::move(parts), gguf.path());
}

}  // namespace kvquant
