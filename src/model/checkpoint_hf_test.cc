#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>

#include "base/file.h"
#include "base/half.h"
#include "formats/json_fields.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "model/checkpoint.h"
#include "model/make_model.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

class HuggingFaceCheckpoint : public testing::Test {
 protected:
  const fs::path folder_ =
      fs::path(testing::TempDir()) /
      (std::string("kvquant_hf_") + testing::UnitTest::GetInstance()->current_test_info()->name());
  void SetUp() override {
    fs::remove_all(folder_);
    MakeModelOptions options;
    options.num_layers = 1;
    options.hidden = 32;
    options.num_q_heads = 4;
    options.num_kv_heads = 2;
    options.head_dim = 8;
    options.ffn = 48;
    options.vocab_size = 260;
    options.max_context = 64;
    make_model(options, folder_.string());
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string file(const char* name) const { return (folder_ / name).string(); }
  std::unique_ptr<Checkpoint> open() const { return open_checkpoint(folder_.string()); }

  void change_json(const char* name, const std::function<void(Json&)>& change) const {
    Json json = Json::parse(read_text(file(name)));
    change(json);
    write_file_atomic(file(name), json.dump());
  }
  // Writes the tensors for which `keep` returns a name other than "" to `to`, under that name.
  void rewrite(const char* to, const std::function<std::string(const std::string&)>& keep) const {
    const std::string bytes = read_text(file("model.safetensors"));
    const auto source =
        parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "model");
    std::vector<SafetensorsEntry> entries;
    std::vector<std::span<const std::byte>> data;
    for (const auto& tensor : source.tensors) {
      const std::string name = keep(tensor.name);
      if (name.empty()) continue;
      entries.push_back({name, tensor.dtype, tensor.shape});
      data.push_back(tensor.data);
    }
    write_safetensors(file(to), entries, {},
                      [&](size_t i, const ByteSink& sink) { sink(data[i]); });
  }
  void expect_refused(const std::string& part) const {
    try {
      open();
      ADD_FAILURE() << "accepted: " << part;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find(folder_.string()), 0u) << error.what();
    }
  }
};

TEST_F(HuggingFaceCheckpoint, RowsAreTheFilesRows) {
  const std::string bytes = read_text(file("model.safetensors"));
  const auto source =
      parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "model");
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->file_bytes(), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(checkpoint->config().name, folder_.filename().string());
  int64_t num_parameters = 0;
  for (const auto& tensor : source.tensors) {
    const int64_t num_in = tensor.shape.back();
    const int64_t num_rows = tensor.shape.size() > 1 ? tensor.shape[0] : 1;
    num_parameters += num_rows * num_in;
    ASSERT_EQ(checkpoint->info(tensor.name).shape, tensor.shape);
    std::vector<float> row(static_cast<size_t>(num_in));
    for (int64_t r = 0; r < num_rows; ++r) {
      checkpoint->read_row(tensor.name, r, row);
      for (int64_t i = 0; i < num_in; ++i) {
        BFloat16 expected;
        std::memcpy(&expected, tensor.data.data() + 2 * (r * num_in + i), 2);
        ASSERT_EQ(row[static_cast<size_t>(i)], to_float(expected));
      }
    }
  }
  EXPECT_EQ(checkpoint->num_parameters(), num_parameters);
  EXPECT_THROW(checkpoint->info("lm_head.weight"), FormatError);
}

TEST_F(HuggingFaceCheckpoint, TheFingerprintDependsOnContentAndNotOnThePlace) {
  const std::string print = open()->fingerprint();
  const fs::path other = folder_.string() + "_moved";
  fs::remove_all(other);
  fs::copy(folder_, other);
  EXPECT_EQ(open_checkpoint(other.string())->fingerprint(), print);
  fs::remove_all(other);
  change_json("config.json", [](Json& json) { json["rope_theta"] = 20000.0; });
  EXPECT_NE(open()->fingerprint(), print);
}

TEST_F(HuggingFaceCheckpoint, ShardsOfAnIndexAreReadAsOne) {
  const std::string print = open()->fingerprint();
  const auto is_mlp = [](const std::string& name) { return name.find("mlp") != std::string::npos; };
  rewrite("1.safetensors", [&](const std::string& name) { return is_mlp(name) ? name : ""; });
  rewrite("2.safetensors", [&](const std::string& name) { return is_mlp(name) ? "" : name; });
  fs::remove(file("model.safetensors"));
  const std::string up = "model.layers.0.mlp.up_proj.weight", norm = "model.norm.weight";
  const auto index = [&](const std::map<std::string, std::string>& files) {
    write_file_atomic(file("model.safetensors.index.json"), Json{{"weight_map", files}}.dump());
  };
  index({{up, "1.safetensors"}, {norm, "2.safetensors"}});
  EXPECT_EQ(open()->fingerprint(), print);
  fs::copy(file("1.safetensors"), file("3.safetensors"));  // not in the index: not read
  EXPECT_EQ(open()->fingerprint(), print);
  index({{up, "1.safetensors"},
         {norm, "2.safetensors"},
         {"model.layers.0.mlp.gate_proj.weight", "3.safetensors"}});
  expect_refused("3.safetensors: tensor \"model.layers.0.mlp.down_proj.weight\" is in two files");
  index({{up, "2.safetensors"}, {norm, "1.safetensors"}});
  expect_refused("1.safetensors: tensor \"model.norm.weight\" is not there");
  index({{up, "1.safetensors"}});
  expect_refused("\"model.embed_tokens.weight\" is missing");
  index({{up, "1.safetensors"}, {norm, "../2.safetensors"}});
  expect_refused("\"../2.safetensors\" is not a name inside the folder");
  index({{up, "1.safetensors"}, {norm, file("2.safetensors")}});
  expect_refused("is not a name inside the folder");
  index({{up, "1.safetensors"}, {norm, "4.safetensors"}});
  try {
    open();
    ADD_FAILURE() << "accepted";
  } catch (const IoError& error) {
    EXPECT_EQ(std::string(error.what()).find(file("4.safetensors") + ": missing"), 0u);
  }
}

TEST_F(HuggingFaceCheckpoint, AWholeFileNeedsNoIndex) {
  write_file_atomic(file("model.safetensors.index.json"), R"({"weight_map": {"a": "b"}})");
  EXPECT_NO_THROW(open());
}

TEST_F(HuggingFaceCheckpoint, ShardsMayHaveFloatsOfDifferentTypes) {
  const auto before = open();
  // Norms as F32, the MLP as F16, all else as BF16.
  const auto dtype_of = [](const std::string& name) -> std::string {
    if (name.find("norm") != std::string::npos) return "F32";
    return name.find("mlp") != std::string::npos ? "F16" : "BF16";
  };
  std::map<std::string, std::string> files;
  for (const std::string dtype : {"F32", "F16", "BF16"}) {
    std::vector<SafetensorsEntry> entries;
    const std::string bytes = read_text(file("model.safetensors"));
    for (const auto& tensor :
         parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "m").tensors) {
      if (dtype_of(tensor.name) != dtype) continue;
      entries.push_back({tensor.name, dtype, tensor.shape});
      files[tensor.name] = dtype + ".safetensors";
    }
    write_safetensors(file((dtype + ".safetensors").c_str()), entries, {},
                      [&](size_t i, const ByteSink& sink) {
                        const auto& shape = entries[i].shape;
                        std::vector<float> row(static_cast<size_t>(shape.back()));
                        for (int64_t r = 0; r < (shape.size() > 1 ? shape[0] : 1); ++r) {
                          before->read_row(entries[i].name, r, row);
                          for (const float value : row) {
                            const Half half = to_half(value);
                            const BFloat16 bf16 = to_bfloat16(value);
                            if (dtype == "F32") sink(std::as_bytes(std::span(&value, 1)));
                            if (dtype == "F16") sink(std::as_bytes(std::span(&half, 1)));
                            if (dtype == "BF16") sink(std::as_bytes(std::span(&bf16, 1)));
                          }
                        }
                      });
  }
  fs::remove(file("model.safetensors"));
  write_file_atomic(file("model.safetensors.index.json"), Json{{"weight_map", files}}.dump());
  const auto after = open();
  for (const auto& [name, path] : files) {
    const auto shape = after->info(name).shape;
    EXPECT_EQ(after->info(name).type, dtype_of(name));
    std::vector<float> expected(static_cast<size_t>(shape.back())), row(expected.size());
    for (int64_t r = 0; r < (shape.size() > 1 ? shape[0] : 1); ++r) {
      before->read_row(name, r, expected);
      after->read_row(name, r, row);
      if (dtype_of(name) == "F16") {
        for (float& value : expected) value = round_to_half(value);
      }
      ASSERT_EQ(row, expected) << name;
    }
  }
}

TEST_F(HuggingFaceCheckpoint, ATiedModelMayHoldItsHeadInsteadOfItsEmbeddings) {
  const std::string print = open()->fingerprint();
  rewrite("model.safetensors", [](const std::string& name) {
    return name == "model.embed_tokens.weight" ? std::string("lm_head.weight") : name;
  });
  const auto checkpoint = open();
  EXPECT_TRUE(checkpoint->has("model.embed_tokens.weight"));
  EXPECT_FALSE(checkpoint->has("lm_head.weight"));
  EXPECT_EQ(checkpoint->fingerprint(), print);
  change_json("config.json", [](Json& json) { json["tie_word_embeddings"] = false; });
  expect_refused("\"model.embed_tokens.weight\" is missing");
}

TEST_F(HuggingFaceCheckpoint, MissingUnknownAndMisshapenTensorsAreNamed) {
  const std::string key = "model.layers.0.self_attn.k_proj.weight";
  const std::string original = read_text(file("model.safetensors"));
  rewrite("model.safetensors", [&](const std::string& name) { return name == key ? "" : name; });
  expect_refused(key + "\" is missing");
  write_file_atomic(file("model.safetensors"), original);
  rewrite("model.safetensors",
          [&](const std::string& name) { return name == key ? key + "_scale" : name; });
  expect_refused(key + "_scale\" is not supported");
  write_file_atomic(file("model.safetensors"), original);
  change_json("config.json", [](Json& json) { json["num_key_value_heads"] = 4; });
  expect_refused("has shape [16, 32], the config says [32, 32]");
}

TEST_F(HuggingFaceCheckpoint, EosTokensComeFromTheGenerationConfigOrTheConfig) {
  change_json("generation_config.json", [](Json& json) { json["eos_token_id"] = {3, 5}; });
  EXPECT_EQ(open()->eos_token_ids(), (std::vector<int32_t>{3, 5}));
  change_json("config.json", [](Json& json) { json["eos_token_id"] = 7; });
  fs::remove(file("generation_config.json"));
  EXPECT_EQ(open()->eos_token_ids(), (std::vector<int32_t>{7}));
  change_json("config.json", [](Json& json) { json["eos_token_id"] = 260; });
  expect_refused("eos token 260");
  change_json("config.json", [](Json& json) { json["eos_token_id"] = -1; });
  expect_refused("eos_token_id -1");
}

TEST_F(HuggingFaceCheckpoint, AFolderWithoutATokenizerStillHasWeights) {
  fs::remove(file("tokenizer.json"));
  const auto checkpoint = open();
  EXPECT_TRUE(checkpoint->has("model.norm.weight"));
  EXPECT_THROW(checkpoint->tokenizer(), FormatError);
}

TEST_F(HuggingFaceCheckpoint, WhatIsNotAModelIsRefused) {
  EXPECT_THROW(open_checkpoint(file("absent")), IoError);
  EXPECT_THROW(open_checkpoint(file("config.json")), FormatError);
  fs::remove(file("model.safetensors"));
  expect_refused("neither model.safetensors nor");
  fs::remove(file("config.json"));
  EXPECT_THROW(open(), IoError);
}

}  // namespace
}  // namespace kvquant
