// What both loaders produce: weights as views of mapped files, with everything about them checked.
// A loader fills CheckpointParts; make_checkpoint turns them into a Checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/checkpoint.h"
#include "model/dequant.h"

namespace kvquant {

struct StoredWeight {
  std::vector<int64_t> shape;  // [num_out, num_in] or [size]
  const WeightFormat* format = nullptr;
  std::span<const std::byte> data;  // num_out rows, one after the other

  // Above 0: rows are in the order of GGUF's Llamas, where the two values that rotate together are
  // neighbours: row h d + 2 i + s of the file is Hugging Face's row h d + s d / 2 + i.
  int64_t interleaved_head_dim = 0;
};

struct CheckpointParts {
  std::vector<MappedFile> files;
  ModelConfig config;
  TokenizerData tokenizer;
  std::string tokenizer_error;  // why there is no tokenizer; empty when there is one
  std::vector<int32_t> eos_token_ids;
  std::map<std::string, StoredWeight> weights;  // by Hugging Face name; more than needed is fine
};

// Checks the config, and that every weight of it is there in the right shape. Throws FormatError
// with `path`.
std::unique_ptr<Checkpoint> make_checkpoint(CheckpointParts parts, const std::string& path);

// Loaders; see open_checkpoint.
std::unique_ptr<Checkpoint> open_gguf_checkpoint(const MappedFile& file);
std::unique_ptr<Checkpoint> open_hugging_face_checkpoint(const std::string& folder);

// Of a GGUF file's metadata. Throw FormatError naming what is not supported.
class Gguf;
ModelConfig config_from_gguf(const Gguf& gguf);
inline constexpr const char* kRopeDivisors = "rope_freqs.weight";  // a tensor that belongs to it
TokenizerData tokenizer_data_from_gguf(const Gguf& gguf);

}  // namespace kvquant
