#include "model/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cassert>
#include <filesystem>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "base/hash.h"
#include "base/quote.h"
#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

constexpr size_t kSampleBytes = 64;  // of each end of a tensor, for the fingerprint

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

void add_number(double number, Hash64& hash) { hash.add_integer(std::bit_cast<int64_t>(number)); }

// What plain Llamas don't have; they keep the fingerprints they had before there was any of it.
void add_variant(const ModelConfig& config, Hash64& hash) {
  if (config.sliding_window > 0) {
    hash.add_text("sliding_window");
    hash.add_integer(config.sliding_window);
  }
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling == RopeScaling{}) return;
  hash.add_text(rope_scaling_name(scaling.type));
  hash.add_integer(scaling.original_context);
  hash.add_integer(scaling.truncate);
  for (const double number : {scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor,
                              scaling.beta_fast, scaling.beta_slow, scaling.attention_factor}) {
    add_number(number, hash);
  }
  for (const double divisor : scaling.divisors) add_number(divisor, hash);
}

class FileCheckpoint final : public Checkpoint {
 public:
  FileCheckpoint(CheckpointParts parts, std::string path)
      : parts_(std::move(parts)), path_(std::move(path)) {
    for (const auto& [name, shape] : llama_weights(parts_.config)) {
      const auto found = parts_.weights.find(name);
      if (found == parts_.weights.end()) {
        throw FormatError(path_ + ": tensor " + quote(name) + " is missing");
      }
      if (found->second.shape != shape) {
        throw FormatError(path_ + ": tensor " + quote(name) + " has shape " +
                          shape_text(found->second.shape) + ", the config says " +
                          shape_text(shape));
      }
      order_.push_back(name);
      weights_[name].stored = std::move(found->second);
    }
    parts_.weights.clear();
  }

  const ModelConfig& config() const override { return parts_.config; }
  void extend_context(int64_t context) override;
  std::vector<int32_t> eos_token_ids() const override { return parts_.eos_token_ids; }
  bool has(const std::string& name) const override { return weights_.contains(name); }

  const TokenizerData& tokenizer() const override {
    if (!parts_.tokenizer_error.empty()) throw FormatError(parts_.tokenizer_error);
    return parts_.tokenizer;
  }

  WeightInfo info(const std::string& name) const override {
    const auto found = weights_.find(name);
    if (found == weights_.end()) {
      throw FormatError(path_ + ": tensor " + quote(name) + " is missing");
    }
    const StoredWeight& stored = found->second.stored;
    const WeightGroups& groups = stored.format->groups;
    return {.shape = stored.shape,
            .group_size = fits_groups(found->second) ? groups.size : 0,
            .group_bits = groups.bits,
            .groups_are_exact = groups.are_exact,
            .is_16_bit = stored.format->name != std::string("F32"),
            .type = stored.format->name};
  }

  void read_row(const std::string& name, int64_t row, std::span<float> out) const override {
    const StoredWeight& stored = weights_.find(name)->second.stored;
    assert(static_cast<int64_t>(out.size()) == stored.shape.back());
    const Blocks blocks = row_blocks(stored, row);
    stored.format->to_floats(blocks.data, blocks.count, out.data());
  }

  void read_row_groups(const std::string& name, int64_t row, QuantizedRow out) const override {
    const StoredWeight& stored = weights_.find(name)->second.stored;
    const WeightGroups& groups = stored.format->groups;
    assert(groups.size > 0);
    const Blocks blocks = row_blocks(stored, row);
    groups.convert(blocks.data, blocks.count, out);
    const auto num_groups = out.codes.size() / static_cast<size_t>(groups.size);
    if (num_groups == out.scales.size()) return;
    assert(2 * num_groups == out.scales.size());
    for (size_t i = out.scales.size(); i-- > 0;) {  // from the back: i / 2 is still to be read
      out.scales[i] = out.scales[i / 2];
      out.offsets[i] = out.offsets[i / 2];
    }
  }

  void release_pages() const override {
    for (const MappedFile& file : parts_.files) file.release_pages();
  }

  std::string fingerprint() const override;
  int64_t file_bytes() const override;
  int64_t num_parameters() const override;

 private:
  struct Weight {
    StoredWeight stored;
    // Whether the whole tensor fits groups, looked up when it is first asked for: 0 unknown, 1 no,
    // 2 yes.
    mutable std::atomic<int> groups = 0;
  };
  struct Blocks {
    const std::byte* data;
    int64_t count;
  };

  static Blocks row_blocks(const StoredWeight& stored, int64_t row) {
    assert(row >= 0 && row < (stored.shape.size() > 1 ? stored.shape[0] : 1));
    if (const int64_t d = stored.interleaved_head_dim; d > 0) {
      const int64_t within = row % d;
      row = row - within + 2 * (within % (d / 2)) + within / (d / 2);
    }
    const int64_t count = stored.shape.back() / stored.format->block_size;
    return {stored.data.data() + row * count * stored.format->block_bytes, count};
  }

  static bool fits_groups(const Weight& weight) {
    const WeightFormat& format = *weight.stored.format;
    if (format.groups.size == 0) return false;
    if (format.groups.fit == nullptr) return true;
    int state = weight.groups.load(std::memory_order_relaxed);
    if (state == 0) {  // two threads may both look: they find the same
      const auto data = weight.stored.data;
      const auto num_blocks = static_cast<int64_t>(data.size()) / format.block_bytes;
      state = format.groups.fit(data.data(), num_blocks) ? 2 : 1;
      weight.groups.store(state, std::memory_order_relaxed);
    }
    return state == 2;
  }

  CheckpointParts parts_;
  std::string path_;
  std::vector<std::string> order_;  // names as llama_weights lists them
  std::unordered_map<std::string, Weight> weights_;
};

void FileCheckpoint::extend_context(int64_t context) {
  const bool is_dynamic = parts_.config.rope_scaling.type == RopeScalingType::kDynamic;
  if (!is_dynamic || context <= parts_.config.max_context || context > kMaxContext) {
    throw std::invalid_argument("the context of " + path_ + " is " +
                                std::to_string(parts_.config.max_context) + " tokens, not " +
                                std::to_string(context));
  }
  parts_.config.max_context = context;
}

std::string FileCheckpoint::fingerprint() const {
  const ModelConfig& c = parts_.config;
  Hash64 hash;
  hash.add_text(c.architecture);
  for (const int64_t number : {c.hidden, c.ffn, c.num_layers, c.num_q_heads, c.num_kv_heads,
                               c.head_dim, c.vocab_size, c.max_context}) {
    hash.add_integer(number);
  }
  hash.add_integer(std::bit_cast<int32_t>(c.rope_theta));
  hash.add_integer(std::bit_cast<int32_t>(c.norm_eps));
  hash.add_integer(c.tied_embeddings);
  add_variant(c, hash);
  for (const std::string& name : order_) {
    const StoredWeight& stored = weights_.find(name)->second.stored;
    hash.add_text(name);
    hash.add_text(stored.format->name);
    for (const int64_t dim : stored.shape) hash.add_integer(dim);
    const size_t sample = std::min(kSampleBytes, stored.data.size());
    hash.add_bytes(stored.data.first(sample));
    hash.add_bytes(stored.data.last(sample));
  }
  return hash.hex();
}

int64_t FileCheckpoint::file_bytes() const {
  int64_t bytes = 0;
  for (const MappedFile& file : parts_.files) bytes += static_cast<int64_t>(file.bytes().size());
  return bytes;
}

int64_t FileCheckpoint::num_parameters() const {
  int64_t count = 0;
  for (const auto& [name, weight] : weights_) {
    int64_t size = 1;
    for (const int64_t dim : weight.stored.shape) size *= dim;
    count += size;
  }
  return count;
}

}  // namespace

std::unique_ptr<Checkpoint> make_checkpoint(CheckpointParts parts, const std::string& path) {
  check_config(parts.config, path);
  for (const int32_t id : parts.eos_token_ids) {
    if (id < 0 || id >= parts.config.vocab_size) {
      throw FormatError(path + ": eos token " + std::to_string(id) + " is not in a vocabulary of " +
                        std::to_string(parts.config.vocab_size));
    }
  }
  const auto num_tokens = static_cast<int64_t>(parts.tokenizer.tokens.size());
  if (num_tokens > parts.config.vocab_size) {
    throw FormatError(path + ": the tokenizer has " + std::to_string(num_tokens) +
                      " tokens, the model " + std::to_string(parts.config.vocab_size));
  }
  return std::make_unique<FileCheckpoint>(std::move(parts), path);
}

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return open_hugging_face_checkpoint(path);
  const MappedFile file(path);
  if (is_gguf(file.bytes())) return open_gguf_checkpoint(file);
  throw FormatError(path +
                    ": not a model: neither a GGUF file nor a folder with config.json and "
                    "*.safetensors");
}

}  // namespace kvquant
