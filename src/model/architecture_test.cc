// Checkpoints that say they are of another architecture than they are, and what tells models of one
// shape apart.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <set>

#include "base/file.h"
#include "formats/json_fields.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "model/checkpoint.h"
#include "model/golden_test_models.h"
#include "model/model.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

class ArchitectureTest : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(folder_); }

  // A tiny model with another config.json.
  std::unique_ptr<Checkpoint> open(const char* model, const std::function<void(Json&)>& change) {
    fs::remove_all(folder_);
    fs::copy(test::golden_path(model), folder_);
    const std::string path = folder_ + "/config.json";
    Json json = Json::parse(read_text(path));
    change(json);
    write_file_atomic(path, json.dump());
    return open_checkpoint(folder_);
  }
  void expect_refused(const char* model, const char* architecture, const std::string& part) {
    try {
      open(model, [&](Json& json) { json["architectures"] = {architecture}; });
      ADD_FAILURE() << "accepted: " << model << " as " << architecture;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  const std::string folder_ = testing::TempDir() + "kvquant_architecture_" +
                              testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(ArchitectureTest, WeightsItDoesntHaveAreRefused) {
  expect_refused("tiny_qwen2", "MistralForCausalLM", "self_attn.k_proj.bias\" is not supported");
  expect_refused("tiny_qwen3", "MistralForCausalLM", "self_attn.k_norm.weight\" is not supported");
}

TEST_F(ArchitectureTest, WeightsItHasMustBeThere) {
  expect_refused("tiny_llama3", "Qwen2ForCausalLM", "self_attn.q_proj.bias\" is missing");
  expect_refused("tiny_llama3", "Qwen3ForCausalLM", "self_attn.q_norm.weight\" is missing");
}

TEST_F(ArchitectureTest, FingerprintsTellWindowsAndScalingApart) {
  std::set<std::string> prints;
  int num_models = 0;
  const auto add = [&](const std::function<void(Json&)>& change) {
    prints.insert(open("tiny_llama3", change)->fingerprint());
    ++num_models;
  };
  add([](Json&) {});
  add([](Json& json) { json.erase("rope_scaling"); });
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor"}) {
    add([&](Json& json) { json["rope_scaling"][key] = 3.5; });
  }
  add([](Json& json) { json["rope_scaling"]["original_max_position_embeddings"] = 65; });
  add([](Json& json) { json["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}}; });
  const Json yarn = {{"type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 64}};
  add([&](Json& json) { json["rope_scaling"] = yarn; });
  for (const auto& [key, value] : std::vector<std::pair<const char*, Json>>{
           {"attention_factor", 1.5}, {"beta_fast", 16}, {"beta_slow", 2}, {"truncate", false}}) {
    add([&, &name = key, &number = value](Json& json) {
      json["rope_scaling"] = yarn;
      json["rope_scaling"][name] = number;
    });
  }
  for (const int window : {10, 11}) {
    add([&](Json& json) {
      json["architectures"] = {"MistralForCausalLM"};
      json["sliding_window"] = window;
    });
  }
  EXPECT_EQ(static_cast<int>(prints.size()), num_models);
}

TEST_F(ArchitectureTest, ABiasThatIsNotFiniteIsNamed) {
  open("tiny_qwen2", [](Json&) {});
  const std::string path = folder_ + "/model.safetensors";
  std::string bytes = read_text(path);
  const auto file = parse_safetensors(std::as_bytes(std::span(bytes)), path);
  const std::string name = "model.layers.1.self_attn.v_proj.bias";
  for (const auto& tensor : file.tensors) {
    if (tensor.name != name) continue;
    const auto at = reinterpret_cast<const char*>(tensor.data.data()) - bytes.data();
    bytes.replace(static_cast<size_t>(at), 2, "\x80\x7f");  // infinity
  }
  write_file_atomic(path, bytes);
  try {
    Model::load(folder_);
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kvquant
