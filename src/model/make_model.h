// Random Llama checkpoints in Hugging Face format, for measuring speed at any size and for tests.
// The weights are noise of the usual scale, but a few key channels of every head are large, as in
// trained models (KVQuant, arXiv 2401.18079, section 3.1), so that codecs meet outliers.
#pragma once

#include <cstdint>
#include <string>

#include "base/progress.h"

namespace kvquant {

struct MakeModelOptions {
  int64_t num_layers = 8;
  int64_t hidden = 1024;
  int64_t num_q_heads = 16;
  int64_t num_kv_heads = 4;
  int64_t head_dim = 64;
  int64_t ffn = 2816;
  int64_t vocab_size = 8192;  // at least 257: the bytes and <|endoftext|>
  int64_t max_context = 8192;
  uint64_t seed = 42;
  bool tied_embeddings = true;
};

// Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json and
// model.safetensors (bf16) into `folder`, which is made when it is missing. Every file appears
// whole or not at all, config.json last. The same options give the same bytes on every machine.
// Needs memory for one tensor row, not for the model. Throws std::invalid_argument naming a number
// that is not possible, IoError and OutOfMemory (disk full; seen before anything is written).
// Progress counts rows of weights.
void make_model(const MakeModelOptions& options, const std::string& folder,
                const Progress& progress = {});

}  // namespace kvquant
