// Tiny random models of every architecture and RoPE scaling against transformers: logits in f32,
// greedy tokens.
#include <gtest/gtest.h>

#include <algorithm>

#include "golden.h"
#include "model/golden_test_models.h"

namespace kvquant {
namespace {

class Golden : public testing::TestWithParam<const char*> {
 protected:
  // For sequences of this length, which matters to models of dynamic RoPE scaling only.
  Model load(Precision precision, size_t num_tokens, int num_threads = 0) const {
    return Model::load(test::golden_path(GetParam()),
                       {.num_threads = num_threads,
                        .precision = precision,
                        .context = static_cast<int64_t>(num_tokens)});
  }

  const nlohmann::json golden_ = test::read_golden(std::string(GetParam()) + "/golden.json");
};

TEST_P(Golden, LogitsAreWithin2e4OfTheirRange) {
  for (const int num_threads : {1, 2}) {
    for (const auto& prompt : golden_.at("prompts")) {
      const auto ids = prompt.at("ids").get<std::vector<int32_t>>();
      Model model = load(Precision::kF32, ids.size(), num_threads);
      const auto vocab = static_cast<size_t>(model.config().vocab_size);
      const auto actual = test::all_logits(model, ids);
      ASSERT_FALSE(prompt.at("logits").empty());
      for (const auto& [position, values] : prompt.at("logits").items()) {
        const auto expected = values.get<std::vector<double>>();
        ASSERT_EQ(expected.size(), vocab);
        const auto [low, high] = std::minmax_element(expected.begin(), expected.end());
        double error = 0;
        for (size_t i = 0; i < vocab; ++i) {
          error =
              std::max(error, std::fabs(actual[std::stoul(position) * vocab + i] - expected[i]));
        }
        EXPECT_LE(error, 2e-4 * (*high - *low)) << "position " << position;
      }
    }
  }
}

TEST_P(Golden, GreedyTokensAreTheSame) {
  Model model = load(Precision::kF32, 0);
  if (model.config().rope_scaling.type == RopeScalingType::kDynamic) return;  // see below
  for (const auto& prompt : golden_.at("prompts")) {
    const auto expected = prompt.at("greedy").get<std::vector<int32_t>>();
    EXPECT_EQ(test::greedy_agreement(model, prompt.at("ids").get<std::vector<int32_t>>(), expected,
                                     std::vector<double>(expected.size(), 1.0), 0.0),
              expected.size());
  }
}

TEST_P(Golden, Bf16ArithmeticStaysClose) {
  const auto ids = golden_.at("prompts").back().at("ids").get<std::vector<int32_t>>();
  Model model = load(Precision::kBF16, ids.size());
  Model exact = load(Precision::kF32, ids.size());
  const auto a = test::all_logits(exact, ids), b = test::all_logits(model, ids);
  const auto [low, high] = std::minmax_element(a.begin(), a.end());
  double error = 0;
  for (size_t i = 0; i < a.size(); ++i) error = std::max(error, std::fabs(double{a[i]} - b[i]));
  EXPECT_LE(error, 0.05 * (*high - *low));
}

INSTANTIATE_TEST_SUITE_P(Tiny, Golden, testing::ValuesIn(test::kTinyModels),
                         [](const auto& info) { return std::string(info.param); });

// Every step is a model of its own: frequencies follow from the length.
TEST(DynamicRope, GreedyTokensOfWholeForwardPassesAreTheSame) {
  const auto golden = test::read_golden("tiny_dynamic/golden.json");
  for (const auto& prompt : golden.at("prompts")) {
    auto ids = prompt.at("ids").get<std::vector<int32_t>>();
    for (const auto expected : prompt.at("greedy").get<std::vector<int32_t>>()) {
      Model model =
          Model::load(test::golden_path("tiny_dynamic"),
                      {.precision = Precision::kF32, .context = static_cast<int64_t>(ids.size())});
      const auto logits = test::all_logits(model, ids);
      const auto vocab = static_cast<size_t>(model.config().vocab_size);
      ASSERT_EQ(argmax(std::span(logits).last(vocab)), expected) << ids.size() << " tokens";
      ids.push_back(expected);
    }
  }
}

TEST(DynamicRope, TheContextIsThatOfTrainingUnlessMoreIsAskedFor) {
  const std::string folder = test::golden_path("tiny_dynamic");
  Model model = Model::load(folder, {.precision = Precision::kF32});
  Model same = Model::load(folder, {.precision = Precision::kF32, .context = 20});
  Model longer = Model::load(folder, {.precision = Precision::kF32, .context = 100});
  EXPECT_EQ(model.config().max_context, 24);
  EXPECT_EQ(same.config().max_context, 24);
  EXPECT_EQ(longer.config().max_context, 100);
  EXPECT_EQ(same.checkpoint().fingerprint(), model.checkpoint().fingerprint());
  EXPECT_NE(longer.checkpoint().fingerprint(), model.checkpoint().fingerprint());
  EXPECT_THROW(test::all_logits(model, std::vector<int32_t>(25, 1)), std::invalid_argument);
  EXPECT_NO_THROW(test::all_logits(longer, std::vector<int32_t>(100, 1)));
  const auto other = open_checkpoint(test::golden_path("tiny_linear"));
  EXPECT_THROW(other->extend_context(1000), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
