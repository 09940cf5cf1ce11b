#include "model/weights.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
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

}  // namespace
}  // namespace kvquant
