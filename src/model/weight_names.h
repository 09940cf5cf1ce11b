// The weights of a Llama-style decoder by Hugging Face's names, with their shapes, and GGUF's names
// for them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace kvquant {

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;  // [num_out, num_in] or [size]
};

// All of them, in the order of the computation: embeddings, layers, final norm, and
// "lm_head.weight" unless the embeddings are tied; biases and norms of queries and keys where the
// model has them. Requires: check_config passed.
std::vector<NamedShape> llama_weights(const ModelConfig& config);

// "model.layers.3.self_attn.q_proj.weight" for "blk.3.attn_q.weight"; empty when no model that is
// supported has it.
std::string hugging_face_name(std::string_view gguf_name);

}  // namespace kvquant
