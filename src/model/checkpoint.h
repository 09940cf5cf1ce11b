// A checkpoint on disk: hyperparameters and named weight matrices that can be read row by row as
// floats, or, where the file is quantized, as groups of codes. GGUF files and Hugging Face
// directories look the same from here: names are Hugging Face's
// ("model.layers.0.self_attn.q_proj.weight"), query and key rows are in Hugging Face's order (two
// halves rotate together).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvquant/tensor_view.h"
#include "model/config.h"
#include "model/tokenizer_data.h"
#include "ops/linear.h"

namespace kvquant {

struct WeightInfo {
  std::vector<int64_t> shape;  // [num_out, num_in] or [size]
  // Values that share a scale, 16 or 32, where read_row_groups works: the file is quantized and
  // its scales fit a Half. Else 0.
  int64_t group_size = 0;
  int group_bits = 0;             // of their codes
  bool groups_are_exact = false;  // they are what read_row gives; K-quants' scales get rounded
  bool is_16_bit = false;  // F16, BF16 or already fewer bits: bf16 storage is the natural choice
  std::string type;        // the file's name of it: "Q4_1", "BF16"
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  virtual const ModelConfig& config() const = 0;
  // A model whose RoPE scaling is dynamic can read more than its max_context tokens, but rotates
  // all of them according to the length: from now on as for sequences of `context` tokens. Changes
  // config and fingerprint. Throws std::invalid_argument for other models and shorter contexts.
  virtual void extend_context(int64_t context) = 0;

  // Throws FormatError when the checkpoint has no tokenizer or one that is not supported: the
  // weights are usable all the same.
  virtual const TokenizerData& tokenizer() const = 0;

  // Stop tokens of generation (generation_config.json, or eos of the metadata).
  virtual std::vector<int32_t> eos_token_ids() const = 0;

  virtual bool has(const std::string& name) const = 0;
  // Throws FormatError naming the tensor when it is missing.
  virtual WeightInfo info(const std::string& name) const = 0;

  // Row `row` of the tensor (a vector is row 0). out has exactly num_in elements. noexcept on valid
  // arguments: everything was checked when the file was opened. Thread-safe.
  virtual void read_row(const std::string& name, int64_t row, std::span<float> out) const = 0;
  // With a scale for each group_size values, or for each 16 when out has room for those.
  virtual void read_row_groups(const std::string& name, int64_t row, QuantizedRow out) const = 0;

  // Tells the system that the pages of the mapped file read so far won't be needed soon, so that
  // they don't count as this process's memory.
  virtual void release_pages() const {}

  // Hash of architecture, shapes and a sample of the weights' bytes: 16 hex digits. The same for
  // the same file wherever it lies.
  virtual std::string fingerprint() const = 0;
  virtual int64_t file_bytes() const = 0;
  virtual int64_t num_parameters() const = 0;
};

// A GGUF file, or a Hugging Face directory (config.json, *.safetensors with optional index,
// tokenizer.json, generation_config.json). Throws IoError, FormatError.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path);

}  // namespace kvquant
