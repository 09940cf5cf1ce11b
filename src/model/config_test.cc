#include "model/config.h"

#include <gtest/gtest.h>

#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

Json small_config() {
  return Json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "hidden_act": "silu",
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rope_theta": 50000.0, "rms_norm_eps": 1e-05, "tie_word_embeddings": true,
    "rope_scaling": null, "attention_bias": false, "mlp_bias": false})");
}

ModelConfig read(const Json& json) { return config_from_json(json.dump(), "config.json"); }

void expect_refused(const char* key, const Json& value, const std::string& part) {
  Json json = small_config();
  json[key] = value;
  try {
    read(json);
    ADD_FAILURE() << "accepted: " << key << " " << value;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find("config.json: "), 0u) << error.what();
  }
}

TEST(Config, NumbersAreRead) {
  const ModelConfig config = read(small_config());
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.ffn, 176);
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.num_q_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.vocab_size, 512);
  EXPECT_EQ(config.max_context, 128);
  EXPECT_EQ(config.rope_theta, 50000.0f);
  EXPECT_EQ(config.norm_eps, 1e-5f);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_EQ(config.group(), 2);
  EXPECT_EQ(config.kv_dim(), 32);
}

TEST(Config, AbsentFieldsHaveTheDefaultsOfTransformers) {
  Json json = small_config();
  for (const char* key : {"num_key_value_heads", "rope_theta", "rms_norm_eps", "hidden_act",
                          "tie_word_embeddings", "rope_scaling", "attention_bias"}) {
    json.erase(key);
  }
  const ModelConfig config = read(json);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.rope_theta, 10000.0f);
  EXPECT_EQ(config.norm_eps, 1e-6f);
  EXPECT_FALSE(config.tied_embeddings);
}

TEST(Config, HeadDimNeedNotFollowFromTheHiddenSize) {
  Json json = small_config();
  json["head_dim"] = 32;
  EXPECT_EQ(read(json).head_dim, 32);
  json["head_dim"] = nullptr;
  EXPECT_EQ(read(json).head_dim, 16);
}

TEST(Config, RopeParametersOfTransformersFiveAreRead) {
  Json json = small_config();
  json.erase("rope_theta");
  json["rope_parameters"] = {{"rope_theta", 7000.0}, {"rope_type", "default"}};
  EXPECT_EQ(read(json).rope_theta, 7000.0f);
  json["rope_scaling"] = {{"type", "default"}};
  EXPECT_NO_THROW(read(json));
}

TEST(Config, WhatIsNotSupportedIsRefusedByName) {
  for (const char* other : {"GemmaForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM"}) {
    expect_refused("architectures", {other}, other);
    expect_refused("architectures", {other}, "Qwen2ForCausalLM, Qwen3ForCausalLM");
  }
  expect_refused("architectures", nullptr, "architectures");
  expect_refused("attention_bias", true, "attention_bias");
  expect_refused("sliding_window", 64, "sliding_window of a LlamaForCausalLM");
  for (const char* flag : {"mlp_bias", "use_qk_norm", "qk_layernorm", "alibi"}) {
    expect_refused(flag, true, flag);
  }
  for (const char* number :
       {"attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "residual_multiplier",
        "num_local_experts", "num_experts", "clip_qkv", "query_pre_attn_scalar"}) {
    expect_refused(number, 8.0, number);
  }
  expect_refused("hidden_act", "gelu", "gelu");
  expect_refused("partial_rotary_factor", 0.5, "partial_rotary_factor");
  expect_refused("quantization_config", {{"quant_method", "awq"}}, "quantization_config");
}

Json config_of(const char* architecture) {
  Json json = small_config();
  json["architectures"] = {architecture};
  return json;
}

void expect_refused(const Json& json, const std::string& part) {
  try {
    read(json);
    ADD_FAILURE() << "accepted: " << json;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Config, ArchitecturesSayWhatTheyAreMadeOf) {
  const auto parts = [](const char* architecture) {
    const ModelConfig config = read(config_of(architecture));
    return std::tuple(config.architecture, config.qkv_bias, config.qk_norm, config.head_dim);
  };
  EXPECT_EQ(parts("LlamaForCausalLM"), std::tuple("llama", false, false, 16));
  EXPECT_EQ(parts("MistralForCausalLM"), std::tuple("mistral", false, false, 16));
  EXPECT_EQ(parts("Qwen2ForCausalLM"), std::tuple("qwen2", true, false, 16));
  EXPECT_EQ(parts("Qwen3ForCausalLM"), std::tuple("qwen3", false, true, 128));
}

TEST(Config, MistralsWindowIsThatOfAllLayers) {
  Json json = config_of("MistralForCausalLM");
  EXPECT_EQ(read(json).sliding_window, 4096);  // the default of transformers
  json["sliding_window"] = 50;
  EXPECT_EQ(read(json).sliding_window, 50);
  json["layer_types"] = {"sliding_attention", "sliding_attention"};
  EXPECT_EQ(read(json).sliding_window, 50);
  json["layer_types"] = {"sliding_attention", "full_attention"};
  expect_refused(json, "contradict");
  json["layer_types"] = {"full_attention", "full_attention"};
  expect_refused(json, "contradict");
  json["sliding_window"] = nullptr;
  EXPECT_EQ(read(json).sliding_window, 0);
  for (const Json& wrong : std::vector<Json>{0, -1, 1.5, "50", int64_t{1} << 40}) {
    json = config_of("MistralForCausalLM");
    json["sliding_window"] = wrong;
    expect_refused(json, "window");
  }
}

TEST(Config, QwensWindowMattersWhenItIsUsed) {
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    Json json = config_of(architecture);
    json["sliding_window"] = 50;
    json["max_window_layers"] = 1;
    EXPECT_EQ(read(json).sliding_window, 0);
    json["use_sliding_window"] = false;
    json["layer_types"] = {"full_attention", "full_attention"};
    EXPECT_EQ(read(json).sliding_window, 0);
    json["layer_types"] = {"full_attention", "sliding_attention"};
    expect_refused(json, "no sliding window");
    json.erase("layer_types");
    json["use_sliding_window"] = true;
    expect_refused(json, "max_window_layers: a sliding window of some layers");
    json["max_window_layers"] = 2;
    EXPECT_EQ(read(json).sliding_window, 0);
    json["max_window_layers"] = 0;
    EXPECT_EQ(read(json).sliding_window, 50);
    json["layer_types"] = {"full_attention", "full_attention"};
    EXPECT_EQ(read(json).sliding_window, 0);
    json["layer_types"] = {"full_attention", "sliding_attention"};
    expect_refused(json, "layer_types: a sliding window of some layers");
    json["layer_types"] = {"sliding_attention", "sliding_attention"};
    EXPECT_EQ(read(json).sliding_window, 50);
    json["layer_types"] = {"chunked_attention", "sliding_attention"};
    expect_refused(json, "chunked_attention");
    json["layer_types"] = {"sliding_attention"};
    expect_refused(json, "layer_types is not a list of 2");
  }
}

TEST(Config, BiasesAreThoseOfTheArchitecture) {
  for (const char* architecture : {"MistralForCausalLM", "Qwen3ForCausalLM"}) {
    Json json = config_of(architecture);
    json["attention_bias"] = true;
    expect_refused(json, "attention_bias");
    json["attention_bias"] = false;
    json.erase("num_key_value_heads");  // the defaults of transformers differ
    expect_refused(json, "num_key_value_heads is missing");
  }
  Json json = config_of("Qwen2ForCausalLM");
  json["attention_bias"] = true;  // said by some files; it always has them
  EXPECT_TRUE(read(json).qkv_bias);
}

TEST(Config, YarnStretchesTheContext) {
  Json json = small_config();
  json["rope_scaling"] = {
      {"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 128}};
  EXPECT_EQ(read(json).max_context, 512);
  json["max_position_embeddings"] = 1000;
  EXPECT_EQ(read(json).max_context, 1000);
  json["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(read(json).max_context, 1000);
}

TEST(Config, ScalingThatMakesNoSenseIsRefused) {
  const auto yarn = [](const char* key, const Json& value) {
    Json scaling = {{"rope_type", "yarn"}, {"factor", 4.0}};
    scaling[key] = value;
    return scaling;
  };
  expect_refused("rope_scaling", {{"type", "linear"}, {"factor", 0.5}}, "linear: factor 0.5");
  expect_refused("rope_scaling", {{"type", "linear"}, {"factor", 1e9}}, "factor 1000000000");
  expect_refused("rope_scaling", yarn("original_max_position_embeddings", 0),
                 "original_max_position_embeddings 0");
  expect_refused("rope_scaling", yarn("beta_fast", 0.5), "beta_fast 0.5");
  expect_refused("rope_scaling", yarn("attention_factor", 0), "attention_factor 0");
  expect_refused("rope_scaling",
                 {{"rope_type", "llama3"},
                  {"factor", 8.0},
                  {"low_freq_factor", 4.0},
                  {"high_freq_factor", 4.0}},
                 "low_freq_factor 4");
}

TEST(Config, NumbersThatDoNotFitTogetherAreRefused) {
  expect_refused("num_key_value_heads", 3, "4 query heads are not a multiple of 3");
  expect_refused("num_key_value_heads", 0, "key-value heads 0");
  expect_refused("num_attention_heads", 0, "attention heads");
  expect_refused("num_attention_heads", -4, "-4 attention heads");
  expect_refused("num_attention_heads", 3, "hidden_size 64 is not a multiple of 3");
  expect_refused("head_dim", 12, "head_dim 12");
  expect_refused("head_dim", 4, "head_dim 4");
  expect_refused("hidden_size", 0, "hidden size 0");
  expect_refused("hidden_size", "64", "hidden_size is string");
  expect_refused("num_hidden_layers", 1e12, "number of layers");
  expect_refused("vocab_size", 1ull << 40, "vocabulary size");
  expect_refused("max_position_embeddings", 0, "context length 0");
  expect_refused("rope_theta", 0.0, "rope_theta");
  expect_refused("rope_theta", 1e200, "rope_theta");
  expect_refused("rms_norm_eps", -1.0, "rms_norm_eps");
  expect_refused("intermediate_size", nullptr, "intermediate_size is missing");
}

}  // namespace
}  // namespace kvquant
