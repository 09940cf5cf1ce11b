#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/checkpoint.h"
#include "model/file_checkpoint.h"
#include "model/gguf.h"
#include "model/gguf_test_builder.h"
#include "model/tokenizer.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

constexpr int64_t kHeadDim = 8;

// A Llama of one layer: hidden 32, 4 query and 2 KV heads of 8, vocabulary 6.
GgufBuilder llama_metadata() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .text("general.name", "tiny")
      .integer("llama.block_count", 1)
      .integer("llama.context_length", 64)
      .integer("llama.embedding_length", 32)
      .integer("llama.feed_forward_length", 64)
      .integer("llama.attention.head_count", 4)
      .integer("llama.attention.head_count_kv", 2)
      .number("llama.rope.freq_base", 5000.0f)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-6f)
      .integer("llama.rope.dimension_count", 8);
  return builder;
}

GgufBuilder& add_tokenizer(GgufBuilder& builder, const char* pre = "smollm") {
  return builder.text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", pre)
      .texts("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "ab", "<x>", "c"})
      .integers("tokenizer.ggml.token_type", {3, 1, 1, 1, 4, 1})
      .texts("tokenizer.ggml.merges", {"a b"})
      .integer("tokenizer.ggml.bos_token_id", 0)
      .integer("tokenizer.ggml.eos_token_id", 0)
      .text("tokenizer.chat_template", "{{ x }}");
}

// A matrix whose row r holds the number first_row + r.
std::string counting_rows(int64_t num_rows, int64_t num_in) {
  std::string bytes;
  for (int64_t i = 0; i < num_rows * num_in; ++i) {
    const auto value = static_cast<float>(i / num_in);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

void add_weights_that(GgufBuilder& builder, const std::function<bool(const std::string&)>& wanted) {
  const auto add = [&](const std::string& name, uint64_t num_out, uint64_t num_in) {
    if (!wanted(name)) return;
    const auto bytes = counting_rows(static_cast<int64_t>(num_out), static_cast<int64_t>(num_in));
    if (num_out == 1) builder.tensor(name, {num_in}, 0, bytes);
    if (num_out > 1) builder.tensor(name, {num_in, num_out}, 0, bytes);
  };
  add("token_embd.weight", 6, 32);
  add("blk.0.attn_norm.weight", 1, 32);
  add("blk.0.attn_q.weight", 32, 32);
  add("blk.0.attn_k.weight", 16, 32);
  add("blk.0.attn_v.weight", 16, 32);
  add("blk.0.attn_output.weight", 32, 32);
  add("blk.0.ffn_norm.weight", 1, 32);
  add("blk.0.ffn_gate.weight", 64, 32);
  add("blk.0.ffn_up.weight", 64, 32);
  add("blk.0.ffn_down.weight", 32, 64);
  add("output_norm.weight", 1, 32);
}

void add_weights(GgufBuilder& builder, const std::string& without = "") {
  add_weights_that(builder, [&](const std::string& name) { return name != without; });
}

class GgufCheckpoint : public testing::Test {
 protected:
  std::string path_ = testing::TempDir() + "kvquant_checkpoint_" +
                      testing::UnitTest::GetInstance()->current_test_info()->name() + ".gguf";
  void TearDown() override { std::remove(path_.c_str()); }

  std::unique_ptr<Checkpoint> open(const GgufBuilder& builder) {
    write_file_atomic(path_, builder.bytes());
    return open_checkpoint(path_);
  }
  void expect_refused(const GgufBuilder& builder, const std::string& part) {
    try {
      open(builder);
      ADD_FAILURE() << "accepted: " << part;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find(path_), 0u) << error.what();
    }
  }
};

TEST_F(GgufCheckpoint, ConfigAndTokenizerAreRead) {
  GgufBuilder builder = llama_metadata();
  add_tokenizer(builder);
  add_weights(builder);
  const auto checkpoint = open(builder);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.name, "tiny");
  EXPECT_EQ(config.hidden, 32);
  EXPECT_EQ(config.ffn, 64);
  EXPECT_EQ(config.num_q_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, kHeadDim);
  EXPECT_EQ(config.vocab_size, 6);
  EXPECT_EQ(config.max_context, 64);
  EXPECT_EQ(config.rope_theta, 5000.0f);
  EXPECT_EQ(config.norm_eps, 1e-6f);
  EXPECT_TRUE(config.tied_embeddings);
  const TokenizerData& tokenizer = checkpoint->tokenizer();
  EXPECT_EQ(tokenizer.pre_tokenizer, PreTokenizer::kSmolLm);
  EXPECT_EQ(tokenizer.tokens.size(), 6u);
  EXPECT_EQ(tokenizer.special, std::vector<int32_t>{0});
  EXPECT_EQ(tokenizer.added, std::vector<int32_t>{4});
  ASSERT_EQ(tokenizer.merges.size(), 1u);
  EXPECT_EQ(tokenizer.merges[0].first, "a");
  EXPECT_EQ(tokenizer.merges[0].second, "b");
  EXPECT_EQ(tokenizer.eos, 0);
  EXPECT_FALSE(tokenizer.add_bos);
  EXPECT_EQ(tokenizer.chat_template, "{{ x }}");
  EXPECT_EQ(checkpoint->eos_token_ids(), std::vector<int32_t>{0});
  EXPECT_EQ(checkpoint->num_parameters(), 6 * 32 + 3 * 32 + 96 * 32 + 3 * 64 * 32);
  EXPECT_EQ(checkpoint->fingerprint().size(), 16u);
}

TEST_F(GgufCheckpoint, QueryAndKeyRowsComeInHuggingFacesOrder) {
  GgufBuilder builder = llama_metadata();
  add_weights(builder);
  const auto checkpoint = open(builder);
  std::vector<float> row(32);
  for (const char* name : {"q_proj", "k_proj"}) {
    const std::string weight = "model.layers.0.self_attn." + std::string(name) + ".weight";
    for (int64_t r = 0; r < checkpoint->info(weight).shape[0]; ++r) {
      checkpoint->read_row(weight, r, row);
      const int64_t head = r / kHeadDim, s = r % kHeadDim / (kHeadDim / 2);
      const int64_t i = r % (kHeadDim / 2);
      EXPECT_EQ(row[0], static_cast<float>(head * kHeadDim + 2 * i + s)) << name << " row " << r;
    }
  }
  for (int64_t r = 0; r < 16; ++r) {
    checkpoint->read_row("model.layers.0.self_attn.v_proj.weight", r, row);
    EXPECT_EQ(row[31], static_cast<float>(r));
  }
}

TEST_F(GgufCheckpoint, QuantizedWeightsAreReadAsFloatsAndAsGroups) {
  GgufBuilder builder = llama_metadata();
  add_weights(builder, "blk.0.attn_v.weight");
  std::string blocks;
  for (int row = 0; row < 16; ++row) {
    blocks += std::string("\x00\x38\x00\xbc", 4);  // d = 0.5, m = -1
    blocks += std::string(16, static_cast<char>(row | (15 - row) << 4));
  }
  builder.tensor("blk.0.attn_v.weight", {32, 16}, 3, blocks);
  const auto checkpoint = open(builder);
  const std::string name = "model.layers.0.self_attn.v_proj.weight";
  EXPECT_EQ(checkpoint->info(name).group_size, 32);
  EXPECT_TRUE(checkpoint->info(name).groups_are_exact);
  EXPECT_TRUE(checkpoint->info(name).is_16_bit);
  EXPECT_EQ(checkpoint->info(name).type, "Q4_1");
  std::vector<float> floats(32);
  checkpoint->read_row(name, 3, floats);
  EXPECT_EQ(floats[0], 0.5f);
  EXPECT_EQ(floats[16], 5.0f);
  std::vector<uint8_t> codes(32);
  std::vector<Half> scales(1), offsets(1);
  checkpoint->read_row_groups(name, 3, {codes, scales, offsets});
  EXPECT_EQ(codes[0], 3);
  EXPECT_EQ(codes[31], 12);
  EXPECT_EQ(to_float(scales[0]), 0.5f);
  EXPECT_EQ(to_float(offsets[0]), -1.0f);
  scales.resize(2), offsets.resize(2);  // a scale for each 16 values
  checkpoint->read_row_groups(name, 3, {codes, scales, offsets});
  EXPECT_EQ(to_float(scales[1]), 0.5f);
  EXPECT_EQ(to_float(offsets[1]), -1.0f);
}

TEST_F(GgufCheckpoint, ATensorWithOneOverflowingScaleHasNoGroups) {
  for (const char* scale : {"\x00\x3c", "\x00\x7b"}) {  // 1 and 57344
    GgufBuilder builder = llama_metadata();
    add_weights(builder, "blk.0.attn_v.weight");
    std::string blocks(16 * 34, '\0');
    blocks.replace(9 * 34, 2, std::string(scale, 2));
    builder.tensor("blk.0.attn_v.weight", {32, 16}, 8, blocks);
    const auto checkpoint = open(builder);
    const bool fits = scale[1] == '\x3c';
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(checkpoint->info("model.layers.0.self_attn.v_proj.weight").group_size,
                fits ? 32 : 0);
    }
  }
}

TEST_F(GgufCheckpoint, ShardsAreTheSameModelAsTheWholeFile) {
  GgufBuilder whole = llama_metadata();
  add_tokenizer(whole);
  add_weights(whole);
  const std::string print = open(whole)->fingerprint();
  const std::string stem = path_.substr(0, path_.size() - 5);
  const std::string paths[2] = {stem + "-00001-of-00002.gguf", stem + "-00002-of-00002.gguf"};
  int64_t file_bytes = 0;
  for (uint32_t i = 0; i < 2; ++i) {
    GgufBuilder shard = i == 0 ? llama_metadata() : GgufBuilder();
    if (i == 0) add_tokenizer(shard);
    shard.integer("split.no", i).integer("split.count", 2).integer("split.tensors.count", 11);
    // The embeddings, which the config needs, are in the second one.
    add_weights_that(shard, [&](const std::string& name) {
      return (name.find("ffn") == std::string::npos) == (i == 1);
    });
    write_file_atomic(paths[i], shard.bytes());
    file_bytes += static_cast<int64_t>(shard.bytes().size());
  }
  for (const std::string& path : paths) {
    const auto checkpoint = open_checkpoint(path);
    EXPECT_EQ(checkpoint->fingerprint(), print);
    EXPECT_EQ(checkpoint->file_bytes(), file_bytes);
    EXPECT_EQ(checkpoint->tokenizer().tokens.size(), 6u);
  }
  for (const std::string& path : paths) std::remove(path.c_str());
}

TEST_F(GgufCheckpoint, AModelWithoutASupportedTokenizerStillHasWeights) {
  for (const char* pre : {"", "bert-bpe"}) {
    GgufBuilder builder = llama_metadata();
    if (pre[0] != 0) add_tokenizer(builder, pre);
    add_weights(builder);
    const auto checkpoint = open(builder);
    EXPECT_TRUE(checkpoint->has("model.norm.weight"));
    EXPECT_THROW(checkpoint->tokenizer(), FormatError);
  }
}

TEST_F(GgufCheckpoint, MissingAndUnknownTensorsAreNamed) {
  for (const auto& [gguf, hugging_face] : std::vector<std::pair<const char*, const char*>>{
           {"output_norm.weight", "model.norm.weight"},
           {"blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"},
           {"blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"}}) {
    GgufBuilder builder = llama_metadata();
    add_weights(builder, gguf);
    expect_refused(builder, std::string(hugging_face) + "\" is missing");
  }
  for (const char* name : {"rope_factors_long.weight", "blk.0.attn_q.bias", "blk.1.attn_q.weight",
                           "blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight"}) {
    GgufBuilder builder = llama_metadata();
    add_weights(builder);
    builder.tensor(name, {1}, 0, "abcd");
    expect_refused(builder, std::string(name) + "\" is not supported");
  }
}

// Biases of qwen2, norms of qwen3; rows of both are in Hugging Face's order.
TEST_F(GgufCheckpoint, QwensRowsStayWhereTheyAre) {
  GgufBuilder builder;
  builder.text("general.architecture", "qwen2");
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, uint32_t>>{{"block_count", 1},
                                                     {"context_length", 64},
                                                     {"embedding_length", 32},
                                                     {"feed_forward_length", 64},
                                                     {"attention.head_count", 4},
                                                     {"attention.head_count_kv", 2}}) {
    builder.integer("qwen2." + std::string(key), value);
  }
  builder.number("qwen2.attention.layer_norm_rms_epsilon", 1e-6f);
  add_weights(builder);
  for (const auto& [name, size] : {std::pair("q", 32), std::pair("k", 16), std::pair("v", 16)}) {
    builder.tensor("blk.0.attn_" + std::string(name) + ".bias", {static_cast<uint64_t>(size)}, 0,
                   counting_rows(size, 1));
  }
  const auto checkpoint = open(builder);
  std::vector<float> row(32);
  checkpoint->read_row("model.layers.0.self_attn.q_proj.weight", 13, row);
  EXPECT_EQ(row[0], 13);
  checkpoint->read_row("model.layers.0.self_attn.q_proj.bias", 0, row);
  EXPECT_EQ(row[13], 13);
  EXPECT_EQ(checkpoint->info("model.layers.0.self_attn.k_proj.bias").shape,
            std::vector<int64_t>{16});
}

TEST_F(GgufCheckpoint, ShapesMustFitTheConfig) {
  GgufBuilder builder = llama_metadata();
  add_weights(builder, "blk.0.attn_k.weight");
  builder.tensor("blk.0.attn_k.weight", {32, 8}, 0, counting_rows(8, 32));
  expect_refused(builder, "has shape [8, 32], the config says [16, 32]");
}

TEST_F(GgufCheckpoint, MetadataThatIsNotSupportedIsRefusedByName) {
  const auto with = [](const std::function<void(GgufBuilder&)>& change) {
    GgufBuilder builder = llama_metadata();
    change(builder);
    add_weights(builder);
    return builder;
  };
  expect_refused(with([](auto& b) { b.integer("llama.attention.key_length", 16); }),
                 "rope.dimension_count 8 is not the head_dim 16");
  expect_refused(with([](auto& b) { b.integer("tokenizer.ggml.eos_token_id", 6); }),
                 "eos_token_id 6");
}

GgufBuilder sentencepiece_metadata(size_t num_scores = 5, float score = -1) {
  std::string array("\6\0\0\0", 4);
  const uint64_t count = num_scores;
  array.append(reinterpret_cast<const char*>(&count), 8);
  for (size_t i = 0; i < num_scores; ++i) array.append(reinterpret_cast<const char*>(&score), 4);
  GgufBuilder builder;
  builder.text("tokenizer.ggml.model", "llama")
      .texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "\u2581", "a", "\u2581a"})
      .integers("tokenizer.ggml.token_type", {2, 3, 1, 1, 1})
      .raw("tokenizer.ggml.scores", 9, array);
  return builder;
}

TokenizerData read_tokenizer(const GgufBuilder& builder) {
  const std::string bytes = builder.bytes();
  return tokenizer_data_from_gguf(Gguf(as_byte_span(bytes), "a.gguf"));
}

TEST_F(GgufCheckpoint, SentencepieceTokenizersAreReadWithScores) {
  const TokenizerData data = read_tokenizer(sentencepiece_metadata());
  EXPECT_EQ(data.merge_order, MergeOrder::kScores);
  EXPECT_EQ(data.bos, 1);
  EXPECT_EQ(data.eos, 2);
  EXPECT_EQ(data.unk, 0);
  EXPECT_TRUE(data.add_bos);
  EXPECT_EQ(Tokenizer(data).encode("a a"), (std::vector<int32_t>{1, 4, 4}));
  const TokenizerData bare =
      read_tokenizer(sentencepiece_metadata().boolean("tokenizer.ggml.add_space_prefix", false));
  EXPECT_EQ(Tokenizer(bare).encode("a a"), (std::vector<int32_t>{1, 3, 4}));
  EXPECT_THROW(read_tokenizer(sentencepiece_metadata(4)), FormatError);
  EXPECT_THROW(Tokenizer(read_tokenizer(sentencepiece_metadata(5, NAN))), FormatError);
  for (const char* key : {"remove_extra_whitespaces", "add_eos_token"}) {
    auto builder = sentencepiece_metadata();
    builder.boolean(std::string("tokenizer.ggml.") + key, true);
    EXPECT_THROW(read_tokenizer(builder), FormatError) << key;
  }
}

TEST_F(GgufCheckpoint, PatternsAreNamedAsInOtherPrograms) {
  const auto with = [](const char* name) {
    GgufBuilder builder;
    builder.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", {"a"});
    if (name[0] != 0) builder.text("tokenizer.ggml.pre", name);
    return read_tokenizer(builder);
  };
  EXPECT_EQ(with("qwen2").pre_tokenizer, PreTokenizer::kLlama3SingleDigits);
  EXPECT_TRUE(with("qwen2").nfc);
  EXPECT_FALSE(with("deepseek-r1-qwen").nfc);
  EXPECT_EQ(with("falcon").pre_tokenizer, PreTokenizer::kFalcon);
  EXPECT_EQ(with("tekken").pre_tokenizer, PreTokenizer::kTekken);
  EXPECT_TRUE(with("tekken").ignore_merges);
  EXPECT_EQ(with("").pre_tokenizer, PreTokenizer::kGgufDefault);
  try {
    with("bert-bpe");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("\"bert-bpe\" is not supported; these are: default, "),
              std::string::npos)
        << error.what();
  }
}

TEST_F(GgufCheckpoint, TokenizerMetadataIsChecked) {
  const auto read = [](const std::function<void(GgufBuilder&)>& change) {
    GgufBuilder builder;
    builder.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "llama-bpe");
    change(builder);
    const std::string bytes = builder.bytes();
    return tokenizer_data_from_gguf(Gguf(as_byte_span(bytes), "a.gguf"));
  };
  const TokenizerData data = read([](auto& b) {
    b.texts("tokenizer.ggml.tokens", {"a"}).integer("tokenizer.ggml.bos_token_id", 0);
  });
  EXPECT_EQ(data.pre_tokenizer, PreTokenizer::kLlama3);
  EXPECT_TRUE(data.ignore_merges);
  EXPECT_TRUE(data.add_bos);
  EXPECT_THROW(read([](auto&) {}), FormatError);  // no tokens
  EXPECT_THROW(read([](auto& b) {
                 b.texts("tokenizer.ggml.tokens", {"a"}).texts("tokenizer.ggml.merges", {"ab"});
               }),
               FormatError);
  EXPECT_THROW(read([](auto& b) {
                 b.texts("tokenizer.ggml.tokens", {"a"}).texts("tokenizer.ggml.merges", {""});
               }),
               FormatError);
  EXPECT_THROW(
      read([](auto& b) {
        b.texts("tokenizer.ggml.tokens", {"a"}).integers("tokenizer.ggml.token_type", {1, 1});
      }),
      FormatError);
  EXPECT_THROW(read([](auto& b) {
                 b.texts("tokenizer.ggml.tokens", {"a"}).integer("tokenizer.ggml.bos_token_id", 1);
               }),
               FormatError);
}

}  // namespace
}  // namespace kvquant
