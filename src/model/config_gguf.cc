// Hyperparameters of a GGUF file. Keys are those of llama.cpp; those that begin with the
// architecture and are not known here are refused, as they might change what is computed.
#include <algorithm>
#include <string_view>
#include <vector>

#include "base/quote.h"
#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"

namespace kvquant {
namespace {

struct Architecture {
  const char* name;  // general.architecture
  bool qkv_bias = false;
  bool qk_norm = false;
  bool has_sliding_window = false;
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama", .has_sliding_window = true},  // Mistral, too
    {.name = "qwen2", .qkv_bias = true},
    {.name = "qwen3", .qk_norm = true},
};

constexpr std::string_view kKnownKeys[] = {
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
};

// The metadata of one architecture.
class Reader {
 public:
  explicit Reader(const Gguf& gguf) : gguf_(gguf), architecture_(find_architecture(gguf)) {}

  const Architecture& architecture() const { return architecture_; }
  std::string key(const char* name) const { return std::string(architecture_.name) + "." + name; }
  bool has(const char* name) const { return gguf_.has(key(name)); }
  std::optional<int64_t> integer(const char* name) const { return gguf_.integer(key(name)); }
  std::optional<double> number(const char* name) const { return gguf_.number(key(name)); }
  std::optional<std::string> text(const char* name) const { return gguf_.text(key(name)); }
  std::optional<bool> boolean(const char* name) const { return gguf_.boolean(key(name)); }

  int64_t require(const char* name) const {
    const auto value = integer(name);
    if (!value) fail(key(name) + " is missing");
    return *value;
  }
  // Refuses a number that would change what is computed.
  void require_number(const char* name, double only) const {
    if (number(name).value_or(only) != only) fail(key(name) + " is not supported");
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError(gguf_.path() + ": " + what);
  }

  void refuse_unknown_keys() const {
    const std::string prefix = std::string(architecture_.name) + ".";
    for (const auto& [name, value] : gguf_.metadata()) {
      if (!name.starts_with(prefix)) continue;
      const std::string_view rest = std::string_view(name).substr(prefix.size());
      if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), rest) == std::end(kKnownKeys)) {
        fail(quote(name) + " is not supported");
      }
    }
  }

 private:
  static const Architecture& find_architecture(const Gguf& gguf) {
    const auto name = gguf.text("general.architecture").value_or("");
    for (const Architecture& architecture : kArchitectures) {
      if (name == architecture.name) return architecture;
    }
    throw FormatError(gguf.path() + ": architecture " + quote(name) +
                      " is not supported; llama, qwen2 and qwen3 are");
  }

  const Gguf& gguf_;
  const Architecture& architecture_;
};

int64_t head_dim_of(const Reader& in, const ModelConfig& config) {
  int64_t head_dim = 0;
  if (const auto length = in.integer("attention.key_length")) {
    head_dim = *length;
  } else if (config.num_q_heads > 0 && config.hidden % config.num_q_heads == 0) {
    head_dim = config.hidden / config.num_q_heads;
  } else {
    in.fail(in.key("embedding_length") + " " + std::to_string(config.hidden) +
            " is not a multiple of " + std::to_string(config.num_q_heads) + " heads");
  }
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    const int64_t value = in.integer(name).value_or(head_dim);
    if (value != head_dim) {
      in.fail(in.key(name) + " " + std::to_string(value) + " is not the head_dim " +
              std::to_string(head_dim));
    }
  }
  return head_dim;
}

// Qwen's files don't say which layers have the window.
int64_t sliding_window_of(const Reader& in, int64_t max_context) {
  const int64_t window = in.integer("attention.sliding_window").value_or(0);
  if (window == 0 || in.architecture().has_sliding_window) return window;
  if (window < max_context) in.fail(in.key("attention.sliding_window") + " is not supported");
  return 0;
}

// The tensor that files of Llama 3 hold instead of llama3's parameters.
std::vector<double> rope_divisors(const Reader& in, const Gguf& gguf, int64_t head_dim) {
  const auto found =
      std::find_if(gguf.tensors().begin(), gguf.tensors().end(),
                   [](const GgufTensor& tensor) { return tensor.name == kRopeDivisors; });
  if (found == gguf.tensors().end()) return {};
  if (found->format->name != std::string("F32") ||
      found->shape != std::vector<int64_t>{head_dim / 2}) {
    in.fail("tensor " + quote(kRopeDivisors) + " is not F32 [" + std::to_string(head_dim / 2) +
            "]");
  }
  std::vector<float> values(static_cast<size_t>(head_dim / 2));
  found->format->to_floats(found->data.data(), head_dim / 2, values.data());
  return {values.begin(), values.end()};
}

void read_yarn(const Reader& in, int64_t max_context, RopeScaling& out) {
  out.original_context = in.integer("rope.scaling.original_context_length").value_or(max_context);
  out.beta_fast = in.number("rope.scaling.yarn_beta_fast").value_or(out.beta_fast);
  out.beta_slow = in.number("rope.scaling.yarn_beta_slow").value_or(out.beta_slow);
  out.attention_factor =
      yarn_attention_factor(out.factor) * in.number("rope.scaling.attn_factor").value_or(1);
  in.require_number("rope.scaling.yarn_attn_factor", 1);
  in.require_number("rope.scaling.yarn_log_multiplier", 0);
  if (in.number("rope.scaling.yarn_ext_factor").value_or(-1) >= 0) {  // below 0: the default, 1
    in.require_number("rope.scaling.yarn_ext_factor", 1);
  }
}

RopeScaling rope_scaling_of(const Reader& in, int64_t max_context) {
  RopeScaling out;
  const auto factor = in.number("rope.scaling.factor");
  const double stretch = factor ? *factor : in.number("rope.scale_linear").value_or(0);
  const std::string type = in.text("rope.scaling.type").value_or(stretch == 0 ? "none" : "linear");
  if (type == "none") return out;
  if (type != "linear" && type != "yarn") {
    in.fail(in.key("rope.scaling.type") + " " + quote(type) +
            " is not supported; none, linear and yarn are");
  }
  out.factor = stretch == 0 ? 1 : stretch;
  if (type == "linear") {
    out.type = RopeScalingType::kLinear;
    in.require_number("rope.scaling.attn_factor", 1);
  } else {
    out.type = RopeScalingType::kYarn;
    read_yarn(in, max_context, out);
  }
  return out;
}

}  // namespace

ModelConfig config_from_gguf(const Gguf& gguf) {
  const Reader in(gguf);
  in.refuse_unknown_keys();
  if (in.integer("expert_count").value_or(0) != 0) {
    in.fail(in.key("expert_count") + " is not supported");
  }
  if (!in.boolean("attention.causal").value_or(true)) {
    in.fail(in.key("attention.causal") + " false is not supported");
  }
  ModelConfig config;
  config.architecture = in.architecture().name;
  config.qkv_bias = in.architecture().qkv_bias;
  config.qk_norm = in.architecture().qk_norm;
  config.name = gguf.text("general.name").value_or("");
  config.hidden = in.require("embedding_length");
  config.ffn = in.require("feed_forward_length");
  config.num_layers = in.require("block_count");
  config.num_q_heads = in.require("attention.head_count");
  config.num_kv_heads = in.integer("attention.head_count_kv").value_or(config.num_q_heads);
  config.head_dim = head_dim_of(in, config);
  config.max_context = in.require("context_length");
  config.sliding_window = sliding_window_of(in, config.max_context);
  config.rope_theta = static_cast<float>(in.number("rope.freq_base").value_or(10000.0));
  config.rope_scaling = rope_scaling_of(in, config.max_context);
  const auto eps = in.number("attention.layer_norm_rms_epsilon");
  if (!eps) in.fail(in.key("attention.layer_norm_rms_epsilon") + " is missing");
  config.norm_eps = static_cast<float>(*eps);
  config.tied_embeddings = true;
  for (const GgufTensor& tensor : gguf.tensors()) {
    if (tensor.name == "output.weight") config.tied_embeddings = false;
    if (tensor.name == "token_embd.weight") config.vocab_size = tensor.shape.front();
  }
  check_config(config, gguf.path());
  config.rope_scaling.divisors = rope_divisors(in, gguf, config.head_dim);
  check_config(config, gguf.path());  // the divisors
  config.max_context = stretched_context(config.max_context, config.rope_scaling);
  return config;
}

}  // namespace kvquant
