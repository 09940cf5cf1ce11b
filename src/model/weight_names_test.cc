#include "model/weight_names.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace kvquant {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.hidden = 64;
  config.ffn = 176;
  config.num_layers = 2;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 300;
  return config;
}

TEST(WeightNames, EveryWeightHasItsShape) {
  const auto weights = llama_weights(small_config());
  ASSERT_EQ(weights.size(), 2u * 9 + 3);
  EXPECT_EQ(weights[0].name, "model.embed_tokens.weight");
  EXPECT_EQ(weights[0].shape, (std::vector<int64_t>{300, 64}));
  EXPECT_EQ(weights[2].shape, (std::vector<int64_t>{32, 64}));
  EXPECT_EQ(weights[3].name, "model.layers.0.self_attn.k_proj.weight");
  EXPECT_EQ(weights[3].shape, (std::vector<int64_t>{16, 64}));
  EXPECT_EQ(weights[5].shape, (std::vector<int64_t>{64, 32}));
  EXPECT_EQ(weights.back().name, "lm_head.weight");
}

TEST(WeightNames, TiedEmbeddingsHaveNoHead) {
  ModelConfig config = small_config();
  config.tied_embeddings = true;
  EXPECT_EQ(llama_weights(config).back().name, "model.norm.weight");
}

TEST(WeightNames, BiasesAndNormsFollowTheirMatrices) {
  ModelConfig config = small_config();
  config.qkv_bias = config.qk_norm = true;
  const auto weights = llama_weights(config);
  ASSERT_EQ(weights.size(), 2u * 14 + 3);
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& weight : weights) shapes[weight.name] = weight.shape;
  const std::string layer = "model.layers.1.self_attn.";
  EXPECT_EQ(shapes.at(layer + "q_proj.bias"), std::vector<int64_t>{32});
  EXPECT_EQ(shapes.at(layer + "k_proj.bias"), std::vector<int64_t>{16});
  EXPECT_EQ(shapes.at(layer + "v_proj.bias"), std::vector<int64_t>{16});
  EXPECT_EQ(shapes.at(layer + "q_norm.weight"), std::vector<int64_t>{8});
  EXPECT_EQ(shapes.at(layer + "k_norm.weight"), std::vector<int64_t>{8});
}

TEST(WeightNames, GgufNamesMapOntoAllOfThem) {
  std::set<std::string> expected, mapped;
  ModelConfig config = small_config();
  config.qkv_bias = config.qk_norm = true;
  for (const auto& weight : llama_weights(config)) expected.insert(weight.name);
  for (const char* name : {"token_embd.weight", "output_norm.weight", "output.weight"}) {
    mapped.insert(hugging_face_name(name));
  }
  for (const char* layer : {"0", "1"}) {
    for (const char* name : {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm",
                             "ffn_gate", "ffn_up", "ffn_down"}) {
      mapped.insert(hugging_face_name("blk." + std::string(layer) + "." + name + ".weight"));
    }
    for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_q_norm.weight",
                             "attn_k_norm.weight"}) {
      mapped.insert(hugging_face_name("blk." + std::string(layer) + "." + name));
    }
  }
  EXPECT_EQ(mapped, expected);
}

TEST(WeightNames, OtherNamesMapOntoNothing) {
  for (const char* name : {"", "blk.", "blk.0", "blk..attn_q.weight", "blk.x.attn_q.weight",
                           "blk.01.attn_q.weight", "blk.0.attn_output.bias", "rope_freqs.weight",
                           "blk.0.attn_v_norm.weight", "blk.-1.attn_q.weight"}) {
    EXPECT_EQ(hugging_face_name(name), "") << name;
  }
}

}  // namespace
}  // namespace kvquant
