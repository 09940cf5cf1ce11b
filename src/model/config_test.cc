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
  expect_refused("architectures", {"MistralForCausalLM"}, "MistralForCausalLM");
  expect_refused("architectures", nullptr, "architectures");
  expect_refused("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}, "llama3");
  expect_refused("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "linear");
  expect_refused("rope_scaling", {{"factor", 2.0}}, "factor");
  expect_refused("rope_scaling", 2, "rope_scaling");
  expect_refused("rope_parameters", {{"rope_type", "yarn"}}, "yarn");
  expect_refused("attention_bias", true, "attention_bias");
  expect_refused("mlp_bias", true, "mlp_bias");
  expect_refused("hidden_act", "gelu", "gelu");
  expect_refused("partial_rotary_factor", 0.5, "partial_rotary_factor");
  expect_refused("quantization_config", {{"quant_method", "awq"}}, "quantization_config");
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
