// Checkpoints in GGUF files: names and row order to Hugging Face's.
#include <set>
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

// Divides frequencies; config_from_gguf reads it.
bool is_rope_divisors(const GgufTensor& tensor) { return tensor.name == kRopeDivisors; }

// Of Llamas, llama.cpp rotates neighbours; rows of other models are in Hugging Face's order.
int64_t interleaved_head_dim(const ModelConfig& config, const std::string& name) {
  const bool rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
  return rotated && config.architecture == "llama" ? config.head_dim : 0;
}

std::map<std::string, StoredWeight> weights_of(const Gguf& gguf, const ModelConfig& config) {
  std::set<std::string> known;
  for (const auto& weight : llama_weights(config)) known.insert(weight.name);
  std::map<std::string, StoredWeight> weights;
  for (const GgufTensor& tensor : gguf.tensors()) {
    if (is_rope_divisors(tensor)) continue;
    const std::string name = hugging_face_name(tensor.name);
    if (!known.contains(name)) fail(gguf, "tensor " + quote(tensor.name) + " is not supported");
    weights[name] = {tensor.shape, tensor.format, tensor.data, interleaved_head_dim(config, name)};
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

std::unique_ptr<Checkpoint> open_gguf_checkpoint(const MappedFile& file) {
  CheckpointParts parts;
  const Gguf gguf = open_gguf_shards(file, parts.files);
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
