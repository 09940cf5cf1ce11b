#include "model/make_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"
#include "model/checkpoint.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

MakeModelOptions small_options() {
  MakeModelOptions options;
  options.num_layers = 2;
  options.hidden = 128;
  options.num_q_heads = 4;
  options.num_kv_heads = 2;
  options.head_dim = 64;
  options.ffn = 96;
  options.vocab_size = 300;
  options.max_context = 256;
  return options;
}

class MakeModel : public testing::Test {
 protected:
  std::string folder_ = testing::TempDir() + "kvquant_make_model_" +
                        testing::UnitTest::GetInstance()->current_test_info()->name();
  void SetUp() override { fs::remove_all(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
};

std::vector<float> row_of(const Checkpoint& checkpoint, const std::string& name, int64_t row) {
  std::vector<float> out(static_cast<size_t>(checkpoint.info(name).shape.back()));
  checkpoint.read_row(name, row, out);
  return out;
}

double rms(const std::vector<float>& row) {
  double sum = 0;
  for (const float x : row) sum += double{x} * x;
  return std::sqrt(sum / static_cast<double>(row.size()));
}

TEST_F(MakeModel, TheCheckpointOpensWithTheNumbersAskedFor) {
  make_model(small_options(), folder_);
  const auto checkpoint = open_checkpoint(folder_);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.hidden, 128);
  EXPECT_EQ(config.num_q_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.ffn, 96);
  EXPECT_EQ(config.vocab_size, 300);
  EXPECT_EQ(config.max_context, 256);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_EQ(checkpoint->eos_token_ids(), std::vector<int32_t>{0});
  EXPECT_FALSE(checkpoint->has("lm_head.weight"));
  EXPECT_TRUE(checkpoint->info("model.norm.weight").is_16_bit);
  EXPECT_EQ(checkpoint->info("model.norm.weight").type, "BF16");
  EXPECT_EQ(checkpoint->info("model.norm.weight").group_size, 0);
}

TEST_F(MakeModel, WeightsAreNormalWithTheScaleOfTheirWidth) {
  make_model(small_options(), folder_);
  const auto checkpoint = open_checkpoint(folder_);
  for (const char* name : {"model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"}) {
    const auto shape = checkpoint->info(name).shape;
    double squares = 0;
    for (int64_t row = 0; row < shape[0]; ++row)
      squares += std::pow(rms(row_of(*checkpoint, name, row)), 2);
    EXPECT_NEAR(squares / static_cast<double>(shape[0]) * static_cast<double>(shape[1]), 1, 0.05);
  }
  for (const float x : row_of(*checkpoint, "model.layers.0.input_layernorm.weight", 0)) {
    EXPECT_EQ(x, 1.0f);
  }
}

TEST_F(MakeModel, AFewKeyChannelsAreLargeAndTheQueriesMakeUpForThem) {
  make_model(small_options(), folder_);
  const auto checkpoint = open_checkpoint(folder_);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    for (int64_t head = 0; head < 2; ++head) {
      int num_outliers = 0;
      for (int64_t channel = 0; channel < 64; ++channel) {
        const auto key =
            row_of(*checkpoint, layer + "self_attn.k_proj.weight", head * 64 + channel);
        const double scale = rms(key) * std::sqrt(128.0);
        const bool outlier = scale > 3;
        num_outliers += outlier;
        EXPECT_GT(scale, 0.7);
        EXPECT_LT(scale, outlier ? 10 : 1.3);
        for (int64_t q_head : {2 * head, 2 * head + 1}) {
          const auto query =
              row_of(*checkpoint, layer + "self_attn.q_proj.weight", q_head * 64 + channel);
          EXPECT_NEAR(rms(query) * std::sqrt(128.0) * scale, 1, 0.5);
        }
        const auto partner =
            row_of(*checkpoint, layer + "self_attn.k_proj.weight", head * 64 + (channel + 32) % 64);
        EXPECT_EQ(rms(partner) * std::sqrt(128.0) > 3, outlier);  // they rotate together
      }
      EXPECT_EQ(num_outliers, 2);
    }
  }
}

TEST_F(MakeModel, TheSameSeedGivesTheSameBytes) {
  make_model(small_options(), folder_);
  const std::string first = read_text(folder_ + "/model.safetensors");
  const std::string print = open_checkpoint(folder_)->fingerprint();
  make_model(small_options(), folder_);
  EXPECT_TRUE(read_text(folder_ + "/model.safetensors") == first);
  MakeModelOptions other = small_options();
  other.seed = 43;
  make_model(other, folder_);
  EXPECT_FALSE(read_text(folder_ + "/model.safetensors") == first);
  EXPECT_NE(open_checkpoint(folder_)->fingerprint(), print);
}

TEST_F(MakeModel, TheTokenizerHasEveryIdOnce) {
  make_model(small_options(), folder_);
  const Json json = Json::parse(read_text(folder_ + "/tokenizer.json"));
  std::vector<int64_t> ids;
  for (const auto& [token, id] : json["model"]["vocab"].items()) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  ASSERT_EQ(ids.size(), 300u);
  for (int64_t i = 0; i < 300; ++i) EXPECT_EQ(ids[static_cast<size_t>(i)], i);
  EXPECT_EQ(json["model"]["vocab"]["a"], 1 + 'a');
  EXPECT_EQ(json["model"]["vocab"]["Ġ"], 1 + ' ');
}

TEST_F(MakeModel, AnUntiedHeadIsWritten) {
  MakeModelOptions options = small_options();
  options.tied_embeddings = false;
  make_model(options, folder_);
  EXPECT_TRUE(open_checkpoint(folder_)->has("lm_head.weight"));
}

TEST_F(MakeModel, ImpossibleNumbersAreRefusedBeforeAnythingIsWritten) {
  const auto refused = [&](int64_t MakeModelOptions::*field, int64_t value) {
    MakeModelOptions options = small_options();
    options.*field = value;
    EXPECT_THROW(make_model(options, folder_), std::invalid_argument) << value;
  };
  refused(&MakeModelOptions::num_layers, 0);
  refused(&MakeModelOptions::hidden, -1);
  refused(&MakeModelOptions::num_kv_heads, 3);
  refused(&MakeModelOptions::num_kv_heads, 0);
  refused(&MakeModelOptions::head_dim, 12);
  refused(&MakeModelOptions::ffn, 0);
  refused(&MakeModelOptions::vocab_size, 256);
  refused(&MakeModelOptions::max_context, 0);
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(MakeModel, AStoppedCallLeavesNoModel) {
  struct Stop {};
  int64_t reported = 0, of = 0;
  make_model(small_options(), folder_, [&](int64_t done, int64_t total) {
    reported = done;
    of = total;
  });
  EXPECT_EQ(reported, of);
  fs::remove_all(folder_);
  EXPECT_THROW(make_model(small_options(), folder_,
                          [](int64_t done, int64_t) {
                            if (done == 100) throw Stop{};
                          }),
               Stop);
  EXPECT_FALSE(fs::exists(folder_ + "/config.json"));
  EXPECT_FALSE(fs::exists(folder_ + "/model.safetensors"));
}

TEST_F(MakeModel, AModelLargerThanTheDiskIsRefusedAtOnce) {
  MakeModelOptions options = small_options();
  options.hidden = 1 << 20;
  options.ffn = 1 << 22;
  options.num_layers = 4096;  // 53 PB
  EXPECT_THROW(make_model(options, folder_), OutOfMemory);
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace kvquant
