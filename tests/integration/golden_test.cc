// Tiny random Llama models against transformers: logits in f32, greedy tokens.
#include <gtest/gtest.h>

#include <algorithm>

#include "golden.h"

namespace kvquant {
namespace {

class Golden : public testing::TestWithParam<const char*> {
 protected:
  std::string folder() const {
    return std::string(KVQUANT_SOURCE_DIR "/tests/golden/") + GetParam();
  }

  const nlohmann::json golden_ = test::read_golden(std::string(GetParam()) + "/golden.json");
};

// All logits of a prompt fed at once.
std::vector<float> all_logits(Model& model, const std::vector<int32_t>& ids,
                              const char* spec = "fp32") {
  Transformer& transformer = model.transformer();
  KvCache cache(transformer.kv_shape(), parse_spec(spec), CacheMode::kAsServed,
                transformer.rope_table(), model.pool());
  const ForwardChunk chunk{cache.add_sequence(), ids};
  const auto hidden = transformer.forward({&chunk, 1}, cache);
  std::vector<float> out(ids.size() * static_cast<size_t>(model.config().vocab_size));
  transformer.logits(
      hidden, row_major(out.data(), {static_cast<int64_t>(ids.size()), model.config().vocab_size}));
  return out;
}

TEST_P(Golden, LogitsAreWithin2e4OfTheirRange) {
  for (const int num_threads : {1, 2}) {
    Model model = Model::load(folder(), {.num_threads = num_threads, .precision = Precision::kF32});
    const auto vocab = static_cast<size_t>(model.config().vocab_size);
    for (const auto& prompt : golden_.at("prompts")) {
      const auto ids = prompt.at("ids").get<std::vector<int32_t>>();
      const auto actual = all_logits(model, ids);
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
  Model model = Model::load(folder(), {.precision = Precision::kF32});
  for (const auto& prompt : golden_.at("prompts")) {
    const auto expected = prompt.at("greedy").get<std::vector<int32_t>>();
    EXPECT_EQ(test::greedy_agreement(model, prompt.at("ids").get<std::vector<int32_t>>(), expected,
                                     std::vector<double>(expected.size(), 1.0), 0.0),
              expected.size());
  }
}

TEST_P(Golden, Bf16ArithmeticStaysClose) {
  Model model = Model::load(folder(), {.precision = Precision::kBF16});
  Model exact = Model::load(folder(), {.precision = Precision::kF32});
  const auto ids = golden_.at("prompts").back().at("ids").get<std::vector<int32_t>>();
  const auto a = all_logits(exact, ids), b = all_logits(model, ids);
  const auto [low, high] = std::minmax_element(a.begin(), a.end());
  double error = 0;
  for (size_t i = 0; i < a.size(); ++i) error = std::max(error, std::fabs(double{a[i]} - b[i]));
  EXPECT_LE(error, 0.05 * (*high - *low));
}

INSTANTIATE_TEST_SUITE_P(Tiny, Golden,
                         testing::Values("tiny_untied", "tiny_tied", "tiny_mqa", "tiny_sharded"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace kvquant
