#include "model/weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/file.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "model/gguf_test_builder.h"
#include "model/make_model.h"
#include "model/model.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

class Weights : public testing::Test {
 protected:
  std::string folder_ = testing::TempDir() + "kvquant_weights_" +
                        testing::UnitTest::GetInstance()->current_test_info()->name();
  void SetUp() override {
    fs::remove_all(folder_);
    make_model({.num_layers = 1,
                .hidden = 64,
                .num_q_heads = 2,
                .num_kv_heads = 1,
                .head_dim = 32,
                .ffn = 48,
                .vocab_size = 260,
                .max_context = 64},
               folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Overwrites the last value of a tensor.
  void set_last(const std::string& name, uint16_t bits) const {
    const std::string path = folder_ + "/model.safetensors";
    std::string bytes = read_text(path);
    const auto file = parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), path);
    const auto data = file.find(name)->data;
    const auto offset = reinterpret_cast<const char*>(data.data()) - bytes.data();
    std::memcpy(bytes.data() + offset + data.size() - sizeof bits, &bits, sizeof bits);
    write_file_atomic(path, bytes);
  }
};

TEST_F(Weights, ValuesThatAreNotFiniteAreRefused) {
  constexpr uint16_t kNan = 0x7FC0, kInfinity = 0xFF80, kLargest = 0x7F7F;
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.weight", "model.norm.weight"}) {
    for (const uint16_t bits : {kNan, kInfinity}) {
      set_last(name, bits);
      try {
        Model::load(folder_);
        ADD_FAILURE() << name;
      } catch (const FormatError& error) {
        const std::string message = error.what();
        EXPECT_EQ(message.find(folder_), 0u) << message;
        EXPECT_NE(message.find(name), std::string::npos) << message;
      }
    }
    set_last(name, kLargest);
    Model::load(folder_);
    set_last(name, 0);
  }
}

// A row of blocks with arbitrary codes whose scales, the Halfs at `places`, are 1/1024.
std::string blocks_of(const WeightFormat& format, int64_t num_blocks) {
  std::vector<size_t> places = {0, 2};
  if (std::string_view(format.name) == "Q6_K") places = {208};
  if (std::string_view(format.name) == "Q8_0") places = {0};
  std::string bytes(static_cast<size_t>(num_blocks * format.block_bytes), 0);
  if (format.block_size == 1) return bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 73 + i / 97);
  const Half scale = to_half(0x1p-10f);
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (const size_t place : places) {
      std::memcpy(bytes.data() + static_cast<size_t>(b * format.block_bytes) + place, &scale, 2);
    }
  }
  return bytes;
}

// Format names of the matrices of one layer, in the order of the file.
struct Formats {
  const char *embedding, *query, *key, *value, *output, *gate, *up, *down;
};

// A Llama of one layer, hidden 256, whose matrices have these formats.
GgufBuilder small_model(const Formats& formats) {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .integer("llama.block_count", 1)
      .integer("llama.context_length", 64)
      .integer("llama.embedding_length", 256)
      .integer("llama.feed_forward_length", 256)
      .integer("llama.attention.head_count", 4)
      .integer("llama.attention.head_count_kv", 1)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-6f);
  const auto add = [&](const char* name, uint64_t num_out, const char* format_name) {
    const WeightFormat& format = *find_weight_format(std::string_view(format_name));
    const auto num_blocks = static_cast<int64_t>(num_out) * 256 / format.block_size;
    builder.tensor(name, {256, num_out}, format.gguf_type, blocks_of(format, num_blocks));
  };
  add("token_embd.weight", 64, formats.embedding);
  add("blk.0.attn_q.weight", 256, formats.query);
  add("blk.0.attn_k.weight", 64, formats.key);
  add("blk.0.attn_v.weight", 64, formats.value);
  add("blk.0.attn_output.weight", 256, formats.output);
  add("blk.0.ffn_gate.weight", 256, formats.gate);
  add("blk.0.ffn_up.weight", 256, formats.up);
  add("blk.0.ffn_down.weight", 256, formats.down);
  const std::string ones(256 * 4, 0);
  for (const char* name :
       {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"}) {
    builder.tensor(name, {256}, 0, ones);
  }
  return builder;
}

TEST(WeightTypes, QuantizedTensorsOfDifferentFormatsArePackedTogether) {
  const std::string path = testing::TempDir() + "kvquant_weight_types.gguf";
  write_file_atomic(
      path, small_model({"Q6_K", "Q4_K", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q4_0", "Q8_0"}).bytes());
  const auto checkpoint = open_checkpoint(path);
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  const ModelWeights bf16 = load_weights(*checkpoint, Precision::kBF16, pool);
  EXPECT_EQ(bf16.layers[0].qkv.type(), WeightType::kInt8x2);  // because of Q8_0 and Q6_K
  EXPECT_EQ(bf16.layers[0].output.type(), WeightType::kInt5);
  EXPECT_EQ(bf16.layers[0].gate.type(), WeightType::kInt5);
  EXPECT_EQ(bf16.layers[0].up.type(), WeightType::kInt4);
  EXPECT_EQ(bf16.layers[0].down.type(), WeightType::kInt8);
  EXPECT_EQ(bf16.lm_head.type(), WeightType::kInt6x2);
  // Exact formats stay groups, scales of K-quants are not rounded.
  const ModelWeights f32 = load_weights(*checkpoint, Precision::kF32, pool);
  EXPECT_EQ(f32.layers[0].qkv.type(), WeightType::kF32);
  EXPECT_EQ(f32.layers[0].output.type(), WeightType::kF32);
  EXPECT_EQ(f32.layers[0].gate.type(), WeightType::kInt5);
  EXPECT_EQ(f32.layers[0].up.type(), WeightType::kInt4);

  std::vector<float> expected(256), row(256);
  for (int64_t r = 0; r < 384; ++r) {
    const char* name = r < 256 ? "q" : r < 320 ? "k" : "v";
    const int64_t first = r < 256 ? 0 : r < 320 ? 256 : 320;
    checkpoint->read_row("model.layers.0.self_attn." + std::string(name) + "_proj.weight",
                         r - first, expected);
    f32.layers[0].qkv.read_row(r, row);
    ASSERT_EQ(row, expected) << "row " << r;
    bf16.layers[0].qkv.read_row(r, row);
    float largest = 0;
    for (const float value : expected) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < row.size(); ++i) {
      ASSERT_NEAR(row[i], expected[i], r / 64 == 4 ? 0 : largest * 0x1p-10f) << "row " << r;
    }
  }
  std::remove(path.c_str());
}

// The type of query, key and value stacked, which have these formats.
WeightType stacked_type(const char* query, const char* key, const char* value) {
  const std::string path = testing::TempDir() + "kvquant_weight_stacks.gguf";
  write_file_atomic(
      path, small_model({"Q8_0", query, key, value, "Q8_0", "Q8_0", "Q8_0", "Q8_0"}).bytes());
  ThreadPool pool(1);
  const auto weights = load_weights(*open_checkpoint(path), Precision::kBF16, pool);
  std::remove(path.c_str());
  return weights.layers[0].qkv.type();
}

TEST(WeightTypes, TheWidestOfStackedTensorsDecides) {
  EXPECT_EQ(stacked_type("Q4_0", "Q4_K", "Q4_1"), WeightType::kInt4);
  EXPECT_EQ(stacked_type("Q4_0", "Q5_0", "Q4_1"), WeightType::kInt5);
  EXPECT_EQ(stacked_type("Q4_K", "Q4_K", "Q6_K"), WeightType::kInt6x2);
  EXPECT_EQ(stacked_type("Q5_1", "Q8_0", "Q4_0"), WeightType::kInt8);
  EXPECT_EQ(stacked_type("Q6_K", "Q8_0", "Q6_K"), WeightType::kInt8x2);
}

TEST(WeightTypes, TakeAtMostThreeTenthsMoreBytesThanInTheFile) {
  const std::string path = testing::TempDir() + "kvquant_weight_bytes.gguf";
  ThreadPool pool(1);
  for (const WeightFormat& format : weight_formats()) {
    const char* name = format.name;
    write_file_atomic(path, small_model({name, name, name, name, name, name, name, name}).bytes());
    const auto weights = load_weights(*open_checkpoint(path), Precision::kBF16, pool);
    const PackedMatrix& qkv = weights.layers[0].qkv;
    const int64_t num_blocks = qkv.num_out() * qkv.num_in() / format.block_size;
    const auto file_bytes = static_cast<double>(num_blocks * format.block_bytes);
    EXPECT_LE(static_cast<double>(qkv.num_bytes()), 1.3 * file_bytes) << name;
    EXPECT_EQ(weights.lm_head.type(), qkv.type()) << name;
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace kvquant
