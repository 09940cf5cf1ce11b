// Every architecture as a GGUF file: the tiny models of tests/golden, written as llama.cpp writes
// them, have the logits of their folders.
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <numbers>

#include "golden.h"
#include "model/gguf_test_builder.h"
#include "model/golden_test_models.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

constexpr uint32_t kF32 = 0;  // GGUF's number of the type

std::string bytes_of(std::span<const float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

// Tensors by GGUF's names in F32; of `llama` the rows of queries and keys that rotate together are
// side by side.
void add_tensors(const Checkpoint& from, const std::string& architecture, GgufBuilder& out) {
  std::vector<std::string> names = {"token_embd.weight", "output_norm.weight", "output.weight"};
  for (int64_t layer = 0; layer < from.config().num_layers; ++layer) {
    for (const char* name : {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight",
                             "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_q_norm.weight",
                             "attn_k_norm.weight", "attn_output.weight", "ffn_norm.weight",
                             "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}) {
      names.push_back("blk." + std::to_string(layer) + "." + name);
    }
  }
  const int64_t d = from.config().head_dim;
  for (const std::string& name : names) {
    const std::string source = hugging_face_name(name);
    if (!from.has(source)) continue;
    const auto shape = from.info(source).shape;
    const int64_t num_rows = shape.size() == 1 ? 1 : shape[0];
    const bool interleaved = architecture == "llama" &&
                             (name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight"));
    std::vector<float> row(static_cast<size_t>(shape.back()));
    std::string bytes;
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t i = r % d;
      from.read_row(source, interleaved ? r - i + i % 2 * (d / 2) + i / 2 : r, row);
      bytes += bytes_of(row);
    }
    std::vector<uint64_t> dims(shape.rbegin(), shape.rend());
    out.tensor(name, dims, kF32, bytes);
  }
}

GgufBuilder metadata_of(const ModelConfig& config, const std::string& architecture) {
  GgufBuilder out;
  const auto integer = [&](const std::string& key, int64_t value) {
    out.integer(architecture + "." + key, static_cast<uint32_t>(value));
  };
  out.text("general.architecture", architecture);
  integer("block_count", config.num_layers);
  integer("context_length", 512);
  integer("embedding_length", config.hidden);
  integer("feed_forward_length", config.ffn);
  integer("attention.head_count", config.num_q_heads);
  integer("attention.head_count_kv", config.num_kv_heads);
  integer("attention.key_length", config.head_dim);
  integer("attention.value_length", config.head_dim);
  if (config.sliding_window > 0) integer("attention.sliding_window", config.sliding_window);
  out.number(architecture + ".rope.freq_base", config.rope_theta);
  out.number(architecture + ".attention.layer_norm_rms_epsilon", config.norm_eps);
  return out;
}

// What convert_hf_to_gguf.py makes of llama3's parameters: a divisor for each frequency.
void add_llama3_divisors(const ModelConfig& config, GgufBuilder& out) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto original = static_cast<double>(scaling.original_context);
  std::vector<float> divisors;
  for (int64_t c = 0; c < config.head_dim; c += 2) {
    const double wavelength =
        2 * std::numbers::pi *
        std::pow(config.rope_theta, static_cast<double>(c) / static_cast<double>(config.head_dim));
    const double smooth = (original / wavelength - scaling.low_freq_factor) /
                          (scaling.high_freq_factor - scaling.low_freq_factor);
    const double divisor = wavelength < original / scaling.high_freq_factor ? 1
                           : wavelength > original / scaling.low_freq_factor
                               ? scaling.factor
                               : 1 / ((1 - smooth) / scaling.factor + smooth);
    divisors.push_back(static_cast<float>(divisor));
  }
  out.tensor("rope_freqs.weight", {divisors.size()}, kF32, bytes_of(divisors));
}

struct Variant {
  const char* folder;
  const char* architecture;
  std::function<void(const ModelConfig& config, GgufBuilder& out)> add = [](auto&, auto&) {};
};

const Variant kVariants[] = {
    {"tiny_untied", "llama"},
    {"tiny_mistral", "llama"},
    {"tiny_qwen2", "qwen2"},
    {"tiny_qwen3", "qwen3"},
    {"tiny_llama3", "llama", add_llama3_divisors},
    {"tiny_linear", "llama",
     [](const ModelConfig&, GgufBuilder& out) {
       out.text("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", 4);
     }},
    {"tiny_linear", "llama",
     [](const ModelConfig&, GgufBuilder& out) { out.number("llama.rope.scale_linear", 4); }},
    {"tiny_yarn", "llama",
     [](const ModelConfig&, GgufBuilder& out) {
       out.text("llama.rope.scaling.type", "yarn")
           .number("llama.rope.scaling.factor", 4)
           .integer("llama.rope.scaling.original_context_length", 64)
           .number("llama.rope.scaling.yarn_beta_fast", 8);
     }},
};

class GgufVariants : public testing::TestWithParam<int> {};

TEST_P(GgufVariants, HaveTheLogitsOfTheirFolders) {
  const Variant& variant = kVariants[GetParam()];
  const auto folder = open_checkpoint(test::golden_path(variant.folder));
  GgufBuilder builder = metadata_of(folder->config(), variant.architecture);
  variant.add(folder->config(), builder);
  add_tensors(*folder, variant.architecture, builder);
  const std::string path =
      testing::TempDir() + "kvquant_variant_" + std::to_string(GetParam()) + ".gguf";
  write_file_atomic(path, builder.bytes());
  const auto file = open_checkpoint(path);
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  Transformer expected(*folder, Precision::kF32, pool), actual(*file, Precision::kF32, pool);
  const auto golden = test::read_golden(std::string(variant.folder) + "/golden.json");
  const auto ids = golden.at("prompts").back().at("ids").get<std::vector<int32_t>>();
  const auto a = test::all_logits(expected, ids), b = test::all_logits(actual, ids);
  ASSERT_EQ(a.size(), b.size());
  double error = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error = std::max(error, std::fabs(double{a[i]} - b[i]));
    largest = std::max(largest, std::fabs(double{a[i]}));
  }
  EXPECT_LE(error, 1e-5 * largest);
  std::remove(path.c_str());
}

INSTANTIATE_TEST_SUITE_P(All, GgufVariants,
                         testing::Range(0, static_cast<int>(std::size(kVariants))),
                         [](const auto& info) {
                           return std::to_string(info.index) + "_" + kVariants[info.index].folder;
                         });

}  // namespace
}  // namespace kvquant
