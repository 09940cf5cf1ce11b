// SmolLM2-135M-Instruct against transformers on the same dequantised weights
// (tests/golden/smollm2.json). Skipped when the model isn't there: scripts/get-model smollm2.
#include <gtest/gtest.h>

#include <cstdio>

#include "eval/perplexity.h"
#include "fused_path.h"
#include "golden.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

class RealModel : public testing::Test {
 protected:
  void SetUp() override {
    try {
      path_ = find_model("smollm2");
    } catch (const IoError& error) {
      GTEST_SKIP() << error.what();
    }
    golden_ = test::read_golden("smollm2.json");
  }

  std::string path_;
  nlohmann::json golden_;
};

TEST_F(RealModel, TokenIdsAreThoseOfTransformers) {
  const auto checkpoint = open_checkpoint(path_);
  const Tokenizer tokenizer(checkpoint->tokenizer());
  for (const auto& item : golden_.at("tokenizer")) {
    const auto text = item.at("text").get<std::string>();
    EXPECT_EQ(tokenizer.encode(text), item.at("ids").get<std::vector<int32_t>>()) << text;
  }
}

TEST_F(RealModel, GreedyContinuationsAreThoseOfTransformers) {
  Model model = Model::load(path_, {.precision = Precision::kF32});
  const auto chat_template = recognise_chat_template(model.checkpoint().tokenizer().chat_template);
  for (const auto& item : golden_.at("greedy")) {
    const auto prompt = item.at("prompt").get<std::string>();
    const bool is_chat = item.at("kind") == "chat";
    const std::vector<ChatMessage> messages = {{"user", prompt}};
    const auto ids =
        model.tokenizer().encode(is_chat ? render_chat(chat_template, messages, {}) : prompt);
    EXPECT_EQ(ids, item.at("ids").get<std::vector<int32_t>>()) << prompt;
    const auto expected = item.at("tokens").get<std::vector<int32_t>>();
    // fp16 keys and values move logits by about 0.01: a closer race may end either way.
    EXPECT_EQ(test::greedy_agreement(model, ids, expected,
                                     item.at("margins").get<std::vector<double>>(), 0.05),
              expected.size())
        << prompt;
  }
}

TEST_F(RealModel, PerplexityIsWithinHalfAPercentOfTransformers) {
  for (const Precision precision : {Precision::kF32, default_precision()}) {
    Model model = Model::load(path_, {.precision = precision});
    const auto tokens =
        model.tokenizer().encode(read_text(find_asset("sample.txt")), Tokenizer::Special::kAsText);
    for (const auto& item : golden_.at("perplexity").at("windows")) {
      const auto window = item.at("window").get<int64_t>();
      const std::vector<CacheSpec> specs = {parse_spec("fp16")};
      const auto result = evaluate_perplexity(model, tokens, specs,
                                              {.window = window, .stride = window, .ubatch = 512});
      EXPECT_EQ(result[0].tokens, item.at("tokens").get<int64_t>());
      const auto expected = item.at("perplexity").get<double>();
      EXPECT_NEAR(result[0].perplexity / expected, 1, 0.005);
      RecordProperty("perplexity_" + std::to_string(window), std::to_string(result[0].perplexity));
    }
  }
}

TEST_F(RealModel, CompressedCachesAreAsGoodAsTheirBits) {
  Model model = Model::load(path_);
  const auto tokens =
      model.tokenizer().encode(read_text(find_asset("sample.txt")), Tokenizer::Special::kAsText);
  std::vector<CacheSpec> specs;
  for (const char* spec : {"nuq4-1%,sink=1", "nuq3-1%,sink=1", "nuq2-1%,sink=4,recent=64"}) {
    specs.push_back(parse_spec(spec));
  }
  const auto results =
      evaluate_perplexity(model, tokens, specs, {.window = 1024, .max_windows = 2});
  const double lower[] = {0.003, 0.01, 0.01};  // a better result is a bug, too
  const double upper[] = {0.08, 0.3, 0.6};
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_GT(results[i].kl_mean, lower[i]) << specs[i].text;
    EXPECT_LT(results[i].kl_mean, upper[i]) << specs[i].text;
    EXPECT_GT(results[i].compressed_tokens, 900) << specs[i].text;
  }
}

TEST_F(RealModel, AttentionOnCodesHasTheDistributionsOfThePlainPath) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    Model model = Model::load(path_, {.precision = precision});
    auto text =
        model.tokenizer().encode(read_text(find_asset("sample.txt")), Tokenizer::Special::kAsText);
    text.resize(110);
    for (const char* spec : {"nuq4-1%,sink=1", "k=nuq3-1%,v=had+nuq3,sink=4,recent=64"}) {
      const auto difference = test::compare_paths(model, text, parse_spec(spec));
      EXPECT_GT(difference.compressed_tokens, 32);
      EXPECT_LT(difference.mean_kl, precision == Precision::kF32 ? 1e-5 : 1e-2) << spec;
      std::printf("%s %s: mean KL %.2g\n", precision == Precision::kF32 ? "f32" : "bf16", spec,
                  difference.mean_kl);
    }
  }
}

}  // namespace
}  // namespace kvquant
