#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace kvquant {
namespace {

class Perplexity : public testing::Test {
 protected:
  Perplexity()
      : model_(Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m")),
        text_(model_.tokenizer().encode(read_text(KVQUANT_SOURCE_DIR "/assets/sample.txt"),
                                        Tokenizer::Special::kAsText, Tokenizer::Bos::kNever)) {}

  std::vector<PerplexityResult> run(std::initializer_list<const char*> specs,
                                    const PerplexityOptions& options) {
    std::vector<CacheSpec> parsed;
    for (const char* spec : specs) parsed.push_back(parse_spec(spec));
    return evaluate_perplexity(model_, text_, parsed, options);
  }

  Model model_;
  std::vector<int32_t> text_;
};

// Two-sided: a value that is too good is a bug as well (a run that read nothing compressed, say).
TEST_F(Perplexity, QualityOfTheEmbeddedModelIsWhereItShouldBe) {
  const auto results =
      run({"fp16", "nuq4-1%", "nuq3-1%", "nuq2-1%"}, {.window = 512, .max_windows = 4});
  EXPECT_GT(results[0].perplexity, 40);
  EXPECT_LT(results[0].perplexity, 200);
  EXPECT_EQ(results[0].kl_mean, 0);
  EXPECT_EQ(results[0].top1_agreement, 1);
  EXPECT_EQ(results[0].tokens, 4 * 511);
  const double lower[] = {0, 0.0005, 0.002, 0.01};
  const double upper[] = {0, 0.05, 0.15, 0.8};
  for (size_t i = 1; i < results.size(); ++i) {
    EXPECT_GT(results[i].kl_mean, lower[i]) << results[i].spec.text;
    EXPECT_LT(results[i].kl_mean, upper[i]) << results[i].spec.text;
    EXPECT_GT(results[i].kl_mean, results[i - 1].kl_mean);
    EXPECT_LT(results[i].true_bits, results[i - 1].true_bits);
    EXPECT_EQ(results[i].compressed_tokens, 512);
  }
}

TEST_F(Perplexity, AsServedIsBetterThanStrict) {
  const auto strict = run({"nuq2"}, {.window = 1024, .max_windows = 1, .ubatch = 128});
  const auto served = run(
      {"nuq2"}, {.window = 1024, .max_windows = 1, .mode = CacheMode::kAsServed, .ubatch = 128});
  EXPECT_LT(served[0].kl_mean, strict[0].kl_mean);
  EXPECT_GT(served[0].kl_mean, 0);
}

TEST_F(Perplexity, ARecentWindowOfTheWholeContextIsExact) {
  const auto results = run({"nuq2,recent=512"}, {.window = 512, .max_windows = 1});
  EXPECT_LT(results[0].kl_mean, 1e-3);  // only fp16 keys before instead of after RoPE differ
}

TEST_F(Perplexity, AStrideScoresEveryTokenOnce) {
  text_.resize(700);
  const auto results = run({"fp16"}, {.window = 256, .stride = 100});
  EXPECT_EQ(results[0].tokens, 700);  // the first one after <|endoftext|>
}

TEST_F(Perplexity, TheEvaluatedTokensAreThoseOfTheWindows) {
  text_.resize(1000);  // <|endoftext|> takes one place of every window
  EXPECT_EQ(num_evaluated_tokens(model_, text_, {.window = 101}), 1000);
  EXPECT_EQ(num_evaluated_tokens(model_, text_, {.window = 301}), 900);
  EXPECT_EQ(num_evaluated_tokens(model_, text_, {.window = 301, .max_windows = 2}), 600);
  EXPECT_EQ(num_evaluated_tokens(model_, text_, {.window = 301, .stride = 100}), 1000);
  EXPECT_EQ(num_evaluated_tokens(model_, text_, {.window = 2048}), 1000);
  EXPECT_THROW(num_evaluated_tokens(model_, text_, {.window = 1}), std::invalid_argument);
}

TEST_F(Perplexity, BadOptionsAreRefused) {
  EXPECT_THROW(run({"fp16"}, {.window = 1}), std::invalid_argument);
  EXPECT_THROW(run({"fp16"}, {.window = 4096}), std::invalid_argument);
  EXPECT_THROW(run({"fp16"}, {.window = 64, .stride = 65}), std::invalid_argument);
  text_.resize(1);
  EXPECT_THROW(run({"fp16"}, {.window = 64}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
