#include <gtest/gtest.h>

#include <functional>

#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"
#include "model/gguf_test_builder.h"

namespace kvquant {
namespace {

using Change = std::function<void(GgufBuilder& builder)>;

// 4 query and 2 KV heads of 8, context 64.
GgufBuilder metadata(const std::string& architecture) {
  GgufBuilder builder;
  builder.text("general.architecture", architecture)
      .integer(architecture + ".block_count", 1)
      .integer(architecture + ".context_length", 64)
      .integer(architecture + ".embedding_length", 32)
      .integer(architecture + ".feed_forward_length", 64)
      .integer(architecture + ".attention.head_count", 4)
      .integer(architecture + ".attention.head_count_kv", 2)
      .number(architecture + ".attention.layer_norm_rms_epsilon", 1e-6f)
      .tensor("token_embd.weight", {32, 6}, 0, std::string(6 * 32 * 4, '\0'));
  return builder;
}

ModelConfig read(const GgufBuilder& builder) {
  const std::string bytes = builder.bytes();
  return config_from_gguf(Gguf(as_byte_span(bytes), "a.gguf"));
}

ModelConfig read(
    const std::string& architecture, const Change& change = [](auto&) {}) {
  GgufBuilder builder = metadata(architecture);
  change(builder);
  return read(builder);
}

void expect_refused(const std::string& architecture, const Change& change,
                    const std::string& part) {
  try {
    read(architecture, change);
    ADD_FAILURE() << "accepted: " << part;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find("a.gguf: "), 0u) << error.what();
  }
}

TEST(ConfigGguf, ArchitecturesSayWhatTheyAreMadeOf) {
  const auto parts = [](const char* architecture) {
    const ModelConfig config = read(architecture);
    return std::tuple(config.architecture, config.qkv_bias, config.qk_norm, config.head_dim);
  };
  EXPECT_EQ(parts("llama"), std::tuple("llama", false, false, 8));
  EXPECT_EQ(parts("qwen2"), std::tuple("qwen2", true, false, 8));
  EXPECT_EQ(parts("qwen3"), std::tuple("qwen3", false, true, 8));
  const ModelConfig config = read("qwen3", [](auto& b) {
    b.integer("qwen3.attention.key_length", 16).integer("qwen3.attention.value_length", 16);
  });
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.sliding_window, 0);
  EXPECT_EQ(config.rope_scaling, RopeScaling{});
}

TEST(ConfigGguf, OtherArchitecturesAreRefusedByName) {
  for (const char* other : {"gemma2", "qwen3moe", "phi3", ""}) {
    expect_refused(
        other, [](auto&) {}, "\"" + std::string(other) + "\" is not supported; llama");
  }
  EXPECT_THROW(read(GgufBuilder()), FormatError);
}

TEST(ConfigGguf, TheSlidingWindowIsThatOfAllLayers) {
  const auto window = [](const std::string& architecture, uint32_t tokens) -> Change {
    return [=](auto& b) { b.integer(architecture + ".attention.sliding_window", tokens); };
  };
  EXPECT_EQ(read("llama", window("llama", 20)).sliding_window, 20);
  EXPECT_EQ(read("llama", window("llama", 0)).sliding_window, 0);
  EXPECT_EQ(read("qwen2", window("qwen2", 64)).sliding_window, 0);  // not less than the context
  expect_refused("qwen2", window("qwen2", 20), "qwen2.attention.sliding_window");
  expect_refused(
      "llama", [](auto& b) { b.integer("llama.attention.sliding_window_pattern", 6); },
      "sliding_window_pattern");
}

TEST(ConfigGguf, RopeScalingIsRead) {
  const RopeScaling linear =
      read("llama", [](auto& b) {
        b.text("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", 4);
      }).rope_scaling;
  EXPECT_EQ(linear, (RopeScaling{.type = RopeScalingType::kLinear, .factor = 4}));
  EXPECT_EQ(read("llama", [](auto& b) { b.number("llama.rope.scale_linear", 4); }).rope_scaling,
            linear);
  EXPECT_EQ(read("llama", [](auto& b) { b.number("llama.rope.scaling.factor", 4); }).rope_scaling,
            linear);
  EXPECT_EQ(read("llama", [](auto& b) { b.text("llama.rope.scaling.type", "none"); }).rope_scaling,
            RopeScaling{});
  const ModelConfig yarn = read("qwen2", [](auto& b) {
    b.text("qwen2.rope.scaling.type", "yarn")
        .number("qwen2.rope.scaling.factor", 4)
        .integer("qwen2.rope.scaling.original_context_length", 32)
        .number("qwen2.rope.scaling.attn_factor", 0.5f)
        .number("qwen2.rope.scaling.yarn_ext_factor", -1)
        .number("qwen2.rope.scaling.yarn_beta_fast", 16)
        .number("qwen2.rope.scaling.yarn_beta_slow", 2);
  });
  EXPECT_EQ(yarn.max_context, 128);
  EXPECT_EQ(yarn.rope_scaling, (RopeScaling{.type = RopeScalingType::kYarn,
                                            .factor = 4,
                                            .original_context = 32,
                                            .beta_fast = 16,
                                            .beta_slow = 2,
                                            .attention_factor = 0.5 * yarn_attention_factor(4)}));
}

TEST(ConfigGguf, DivisorsOfFrequenciesAreRead) {
  const std::vector<float> values = {1, 1.5, 4, 8};
  const std::string bytes(reinterpret_cast<const char*>(values.data()), 16);
  const ModelConfig config =
      read("llama", [&](auto& b) { b.tensor("rope_freqs.weight", {4}, 0, bytes); });
  EXPECT_EQ(config.rope_scaling.divisors, (std::vector<double>{1, 1.5, 4, 8}));
  const auto refused = [](std::vector<uint64_t> dims, uint32_t type, const std::string& content,
                          const std::string& part) {
    expect_refused(
        "llama", [&](auto& b) { b.tensor("rope_freqs.weight", dims, type, content); }, part);
  };
  refused({8}, 0, bytes + bytes, "\"rope_freqs.weight\" is not F32 [4]");
  refused({2, 2}, 0, bytes, "\"rope_freqs.weight\" is not F32 [4]");
  refused({4}, 1, bytes.substr(8), "\"rope_freqs.weight\" is not F32 [4]");
  refused({4}, 0, std::string(16, '\0'), "divisor 0 of a frequency");
  refused({4}, 0, std::string(16, '\xff'), "divisor");
}

TEST(ConfigGguf, OptionsThatAreNotKnownAreRefusedByName) {
  expect_refused(
      "llama", [](auto& b) { b.text("llama.rope.scaling.type", "longrope"); }, "longrope");
  expect_refused(
      "llama", [](auto& b) { b.integer("llama.expert_count", 8); }, "llama.expert_count");
  expect_refused(
      "llama", [](auto& b) { b.boolean("llama.attention.causal", false); }, "attention.causal");
  expect_refused(
      "llama",
      [](auto& b) {
        b.number("llama.rope.scaling.factor", 2).number("llama.rope.scaling.attn_factor", 2);
      },
      "attn_factor");
  for (const char* key : {"rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor",
                          "rope.scaling.yarn_attn_factor"}) {
    expect_refused(
        "llama",
        [&](auto& b) {
          b.text("llama.rope.scaling.type", "yarn").number("llama." + std::string(key), 0.5f);
        },
        key);
  }
  for (const char* key : {"logit_scale", "attention.scale", "attention.clamp_kqv",
                          "final_logit_softcapping", "rope.scaling.alpha", "leading_dense"}) {
    expect_refused(
        "llama", [&](auto& b) { b.number("llama." + std::string(key), 2); }, key);
  }
}

}  // namespace
}  // namespace kvquant
