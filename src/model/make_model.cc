#include "model/make_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/half.h"
#include "base/rng.h"
#include "formats/json_fields.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "model/config.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEndOfText = "<|endoftext|>";
constexpr int64_t kNumBytes = 256;

// One key channel of 32 is an outlier, 4 to 8 times as large as the others.
constexpr int64_t kChannelsPerOutlier = 32;
constexpr double kMinOutlier = 4.0, kMaxOutlier = 8.0;
constexpr uint64_t kOutlierStream = uint64_t{1} << 32;  // weights have streams 0, 1, 2, ...

ModelConfig config_of(const MakeModelOptions& options) {
  ModelConfig config;
  config.hidden = options.hidden;
  config.ffn = options.ffn;
  config.num_layers = options.num_layers;
  config.num_q_heads = options.num_q_heads;
  config.num_kv_heads = options.num_kv_heads;
  config.head_dim = options.head_dim;
  config.vocab_size = options.vocab_size;
  config.max_context = options.max_context;
  config.tied_embeddings = options.tied_embeddings;
  try {
    check_config(config, "make-model");
  } catch (const FormatError& error) {
    throw std::invalid_argument(error.what());  // these numbers come from the caller
  }
  check_arg(config.vocab_size > kNumBytes, "make-model: vocabulary size " +
                                               std::to_string(config.vocab_size) +
                                               " is below 257 (256 bytes and <|endoftext|>)");
  return config;
}

std::string config_json(const ModelConfig& config) {
  const Json json = {{"architectures", {"LlamaForCausalLM"}},
                     {"model_type", "llama"},
                     {"vocab_size", config.vocab_size},
                     {"hidden_size", config.hidden},
                     {"intermediate_size", config.ffn},
                     {"num_hidden_layers", config.num_layers},
                     {"num_attention_heads", config.num_q_heads},
                     {"num_key_value_heads", config.num_kv_heads},
                     {"head_dim", config.head_dim},
                     {"max_position_embeddings", config.max_context},
                     {"rope_theta", 10000.0},
                     {"rms_norm_eps", 1e-5},
                     {"hidden_act", "silu"},
                     {"tie_word_embeddings", config.tied_embeddings},
                     {"attention_bias", false},
                     {"mlp_bias", false},
                     {"bos_token_id", 0},
                     {"eos_token_id", 0},
                     {"torch_dtype", "bfloat16"}};
  return json.dump(1) + "\n";
}

// The character that stands for a byte in GPT-2's alphabet: itself when it is printable, else the
// next one from U+0100 on. As UTF-8.
std::vector<std::string> byte_alphabet() {
  std::vector<std::string> alphabet;
  int next = 0x100;
  for (int byte = 0; byte < kNumBytes; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const int code = printable ? byte : next++;
    if (code < 0x80) {
      alphabet.emplace_back(1, static_cast<char>(code));
    } else {
      alphabet.push_back(
          {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))});
    }
  }
  return alphabet;
}

// Byte-level pairs without merges: id 0 ends a text, 1 to 256 are the bytes, the others are
// words that no text is split into, so that any id can be printed.
std::string tokenizer_json(int64_t vocab_size) {
  Json vocab = {{kEndOfText, 0}};
  int64_t id = 1;
  for (const auto& token : byte_alphabet()) vocab[token] = id++;
  for (; id < vocab_size; ++id) vocab["word" + std::to_string(id)] = id;
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json json = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", Json::array({{{"id", 0},
                                                    {"content", kEndOfText},
                                                    {"single_word", false},
                                                    {"lstrip", false},
                                                    {"rstrip", false},
                                                    {"normalized", false},
                                                    {"special", true}}})},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr},
                     {"decoder", byte_level},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", false},
                       {"vocab", vocab},
                       {"merges", Json::array()}}}};
  return json.dump() + "\n";
}

// How much larger than the others a key channel is. Channels c and c + head_dim / 2 rotate together
// and share it; dividing the queries' channels by it leaves every attention score what it was.
// Slowly rotating channels, the upper half, have the outliers, as in trained models.
float key_scale(const ModelConfig& config, uint64_t seed, uint64_t layer, int64_t kv_row) {
  const int64_t half = config.head_dim / 2, channel = kv_row % half;
  const int64_t kv_head = kv_row / config.head_dim;
  const int64_t num_outliers = std::max<int64_t>(1, config.head_dim / kChannelsPerOutlier / 2);
  const CounterRng rng(seed, kOutlierStream + layer);
  const int64_t first_slow = half / 2;
  for (int64_t i = 0; i < num_outliers; ++i) {
    const auto counter = static_cast<uint64_t>(2 * (kv_head * num_outliers + i));
    const auto place = rng.below(counter, static_cast<uint32_t>(half - first_slow));
    if (channel == first_slow + place) {
      return static_cast<float>(kMinOutlier +
                                (kMaxOutlier - kMinOutlier) * rng.uniform(counter + 1));
    }
  }
  return 1.0f;
}

// One row of a matrix: N(0, scale^2) as bf16, num_in numbers from the row's own counters.
void fill_row(const CounterRng& rng, int64_t row, float scale, std::span<BFloat16> out) {
  const size_t num_pairs = (out.size() + 1) / 2;
  const uint64_t start = static_cast<uint64_t>(row) * num_pairs;
  for (size_t i = 0; i < num_pairs; ++i) {
    const auto [a, b] = rng.normals(start + i);
    out[2 * i] = to_bfloat16(a * scale);
    if (2 * i + 1 < out.size()) out[2 * i + 1] = to_bfloat16(b * scale);
  }
}

// Refused before anything is written.
void check_space(const std::string& folder, const std::vector<NamedShape>& weights) {
  std::error_code error;
  const auto space = fs::space(folder, error);
  if (error) return;  // then writing tells
  double bytes = 0;   // of a size that int64_t need not hold
  for (const auto& weight : weights) {
    double size = sizeof(BFloat16);
    for (const int64_t dim : weight.shape) size *= static_cast<double>(dim);
    bytes += size;
  }
  if (bytes <= static_cast<double>(space.available)) return;
  throw OutOfMemory("can't write " + folder + ": the model needs " + std::to_string(bytes / 1e9) +
                    " GB, the disk has " +
                    std::to_string(static_cast<double>(space.available) / 1e9));
}

class WeightWriter {
 public:
  WeightWriter(const ModelConfig& config, uint64_t seed, const Progress& progress)
      : config_(config), seed_(seed), progress_(progress) {
    for (const auto& weight : llama_weights(config)) num_rows_ += num_rows(weight);
  }

  void write(uint64_t index, const NamedShape& weight, const ByteSink& sink) {
    row_.resize(static_cast<size_t>(weight.shape.back()));
    if (weight.shape.size() == 1) {  // a norm
      std::fill(row_.begin(), row_.end(), to_bfloat16(1.0f));
      sink(std::as_bytes(std::span(row_)));
      return report(progress_, ++rows_done_, num_rows_);
    }
    const CounterRng rng(seed_, index);
    const float scale = 1.0f / std::sqrt(static_cast<float>(weight.shape.back()));
    const std::string_view name = weight.name;
    const uint64_t layer =
        index / 9;  // llama_weights lists the embeddings, then 9 weights per layer
    for (int64_t row = 0; row < weight.shape[0]; ++row) {
      float channel = 1.0f;
      if (name.ends_with("k_proj.weight")) channel = key_scale(config_, seed_, layer, row);
      if (name.ends_with("q_proj.weight")) {
        const int64_t kv_head = row / config_.head_dim / config_.group();
        const int64_t kv_row = kv_head * config_.head_dim + row % config_.head_dim;
        channel = 1.0f / key_scale(config_, seed_, layer, kv_row);
      }
      fill_row(rng, row, scale * channel, row_);
      sink(std::as_bytes(std::span(row_)));
      report(progress_, ++rows_done_, num_rows_);
    }
  }

 private:
  static int64_t num_rows(const NamedShape& weight) {
    return weight.shape.size() == 1 ? 1 : weight.shape[0];
  }

  const ModelConfig& config_;
  uint64_t seed_;
  const Progress& progress_;
  int64_t num_rows_ = 0, rows_done_ = 0;
  std::vector<BFloat16> row_;
};

}  // namespace

void make_model(const MakeModelOptions& options, const std::string& folder,
                const Progress& progress) {
  const ModelConfig config = config_of(options);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError("can't make folder " + folder + ": " + error.message());
  const std::vector<NamedShape> weights = llama_weights(config);
  check_space(folder, weights);
  const fs::path base(folder);
  write_file_atomic((base / "generation_config.json").string(),
                    "{\"bos_token_id\": 0, \"eos_token_id\": 0}\n");
  write_file_atomic((base / "tokenizer.json").string(), tokenizer_json(config.vocab_size));
  const Json tokenizer_config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                 {"bos_token", kEndOfText},
                                 {"eos_token", kEndOfText},
                                 {"add_bos_token", true},
                                 {"model_max_length", config.max_context}};
  write_file_atomic((base / "tokenizer_config.json").string(), tokenizer_config.dump(1) + "\n");

  std::vector<SafetensorsEntry> entries;
  for (const auto& weight : weights) entries.push_back({weight.name, "BF16", weight.shape});
  WeightWriter writer(config, options.seed, progress);
  write_safetensors((base / "model.safetensors").string(), entries, {{"format", "pt"}},
                    [&](size_t i, const ByteSink& sink) { writer.write(i, weights[i], sink); });
  write_file_atomic((base / "config.json").string(), config_json(config));  // last: now it loads
}

}  // namespace kvquant
