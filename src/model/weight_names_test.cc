#include "model/weight_names.h"

#include <gtest/gtest.h>

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

TEST(WeightNames, GgufNamesMapOntoAllOfThem) {
  std::set<std::string> expected, mapped;
  for (const auto& weight : llama_weights(small_config())) expected.insert(weight.name);
  for (const char* name : {"token_embd.weight", "output_norm.weight", "output.weight"}) {
    mapped.insert(hugging_face_name(name));
  }
  for (const char* layer : {"0", "1"}) {
    for (const char* name : {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm",
                             "ffn_gate", "ffn_up", "ffn_down"}) {
      mapped.insert(hugging_face_name("blk." + std::string(layer) + "." + name + ".weight"));
    }
  }
  EXPECT_EQ(mapped, expected);
}

TEST(WeightNames, OtherNamesMapOntoNothing) {
  for (const char* name : {"", "blk.", "blk.0", "blk..attn_q.weight", "blk.x.attn_q.weight",
                           "blk.01.attn_q.weight", "blk.0.attn_q.bias", "rope_freqs.weight",
                           "blk.0.attn_q_norm.weight", "blk.-1.attn_q.weight"}) {
    EXPECT_EQ(hugging_face_name(name), "") << name;
  }
}

}  // namespace
}  // namespace kvquant
