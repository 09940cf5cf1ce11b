#include "model/policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <random>

#include "kvquant/spec.h"

namespace kvquant {
namespace {

constexpr int64_t kMega = int64_t{1} << 20;

PolicyModel small_model() {
  return {.num_layers = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_context = 1 << 20,
          .weight_bytes = 10 * kMega};
}

std::optional<KVPolicyName> choice(const PolicyForecasts& model, int64_t memory, int64_t batch,
                                   int64_t context, double budget) {
  try {
    return model.choose(memory, batch, context, budget);
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  }
}

TEST(Policy, NamesAreKnownAndOthersRefusedWithTheList) {
  for (const KVPolicyName name : policy_names())
    EXPECT_EQ(parse_policy_name(to_string(name)), name);
  try {
    parse_policy_name("gentle");
    FAIL();
  } catch (const std::invalid_argument& error) {
    for (const char* part : {"gentle", "default", "high_compression", "memory_emergency"}) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

TEST(Policy, ConfigsSayWhatTheirSpecsDo) {
  for (const int64_t head_dim : {64, 80, 128}) {
    PolicyModel model = small_model();
    model.head_dim = head_dim;
    double budget = 0;
    for (const KVPolicyName name : policy_names()) {
      const auto config = build_compressor_config_for_policy(model, "some", to_string(name));
      EXPECT_EQ(config.policy, name);
      EXPECT_EQ(config.model_id, "some");
      EXPECT_GT(config.ppl_budget, budget);
      budget = config.ppl_budget;
      const CacheSpec spec = parse_spec(config.spec);
      check_spec_fits(spec, 4, static_cast<int>(head_dim));
      check_spec_built(spec);
      EXPECT_EQ(to_string(spec.key), config.key_codec);
      EXPECT_EQ(to_string(spec.value), config.value_codec);
      EXPECT_EQ(spec.sink, config.sink_tokens);
      EXPECT_EQ(spec.recent, config.recent_tokens);
      EXPECT_EQ(config.use_ln_nullspace_v, name == KVPolicyName::kMemoryEmergency);
      EXPECT_EQ(config.use_hadamard_v, name != KVPolicyName::kMemoryEmergency && head_dim != 80);
    }
  }
  EXPECT_EQ(build_compressor_config_for_policy(small_model(), "", "high_compression").ppl_budget,
            0.03);
}

TEST(Policy, EveryTierIsSmallerThanTheOneBefore) {
  for (const int64_t head_dim : {64, 80, 128}) {
    PolicyModel model = small_model();
    model.head_dim = head_dim;
    const PolicyForecasts forecasts(model);
    for (const int64_t context : {200, 2048, 100'000}) {
      int64_t before = INT64_MAX;
      for (const KVPolicyName name : policy_names()) {
        const int64_t bytes = forecasts.policy_bytes(name, 2, context);
        EXPECT_LT(bytes, before) << to_string(name) << " " << head_dim << " " << context;
        EXPECT_GT(bytes, model.weight_bytes);
        before = bytes;
      }
    }
  }
}

TEST(Policy, CountsKvHeadsLayersBatchAndWeights) {
  const PolicyModel model = small_model();
  const auto bytes = [](const PolicyModel& m, int64_t batch) {
    return static_cast<double>(policy_bytes(m, KVPolicyName::kDefault, batch, 8192) -
                               m.weight_bytes);
  };
  PolicyModel more = model;
  more.num_kv_heads = 8;
  EXPECT_NEAR(bytes(more, 1) / bytes(model, 1), 4, 0.15);
  more = model;
  more.num_layers = 8;
  EXPECT_NEAR(bytes(more, 1) / bytes(model, 1), 2, 0.02);
  EXPECT_NEAR(bytes(model, 3) / bytes(model, 1), 3, 0.02);
}

TEST(Policy, ChoosesTheLeastCompressedThatFits) {
  const PolicyForecasts model(small_model());
  for (const KVPolicyName name : policy_names()) {
    const int64_t need = policy_bytes(small_model(), name, 2, 4096);
    EXPECT_EQ(choose_policy_for_run(small_model(), need, 2, 4096), name);
    EXPECT_NE(choice(model, need - 1, 2, 4096, kNoPplBudget), name);
  }
}

// Stricter memory never gives a less compressed tier, a stricter budget never a lossier one.
TEST(Policy, StricterLimitsNeverChooseTheOtherWay) {
  std::mt19937 rng(7);
  const double budgets[] = {0, 0.005, 0.01, 0.02, 0.03, 0.15, 0.2, 1, kNoPplBudget};
  for (int trial = 0; trial < 4; ++trial) {
    PolicyModel model = small_model();
    model.num_layers = 1 + static_cast<int64_t>(rng() % 5);
    model.num_kv_heads = 1 + static_cast<int64_t>(rng() % 4);
    model.head_dim = trial % 2 == 0 ? 64 : 80;
    const int64_t batch = 1 + static_cast<int64_t>(rng() % 4);
    const int64_t context = 1 + static_cast<int64_t>(rng() % 9000);
    std::vector<int64_t> sizes = {1, INT64_MAX};
    const PolicyForecasts forecasts(model);
    for (const KVPolicyName name : policy_names()) {
      const int64_t need = forecasts.policy_bytes(name, batch, context);
      sizes.insert(sizes.end(), {need - 1, need, need + 1});
    }
    std::sort(sizes.begin(), sizes.end());
    for (const int64_t memory : sizes) {
      for (const double budget : budgets) {
        const auto chosen = choice(forecasts, memory, batch, context, budget);
        const int64_t less = sizes[rng() % sizes.size()];
        const double stricter = budgets[rng() % std::size(budgets)];
        const auto with_less = choice(forecasts, std::min(less, memory), batch, context, budget);
        const auto with_stricter =
            choice(forecasts, memory, batch, context, std::min(stricter, budget));
        if (with_less) {
          ASSERT_TRUE(chosen.has_value());
          EXPECT_GE(*with_less, *chosen);
        }
        if (with_stricter) {
          ASSERT_TRUE(chosen.has_value());
          EXPECT_LE(*with_stricter, *chosen);
        }
      }
    }
  }
}

TEST(Policy, WhereNothingFitsTheErrorSaysWhatWould) {
  const PolicyForecasts model(small_model());
  const auto message = [&](int64_t memory, double budget) -> std::string {
    try {
      model.choose(memory, 2, 4096, budget);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "none";
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos);
  };
  expect(message(kMega, kNoPplBudget), "give more memory");
  expect(message(11 * kMega, kNoPplBudget), "tokens would fit as memory_emergency");
  const int64_t least = model.policy_bytes(KVPolicyName::kMemoryEmergency, 2, 4096);
  expect(message(least, 0.03), "tokens would fit as high_compression");
  expect(message(100 * kMega, 0), "a budget of 1% would allow default");
}

TEST(Policy, BadArgumentsAreRefused) {
  const PolicyModel model = small_model();
  EXPECT_THROW(choose_policy_for_run(model, kMega, 0, 10), std::invalid_argument);
  EXPECT_THROW(choose_policy_for_run(model, kMega, 1, 0), std::invalid_argument);
  EXPECT_THROW(choose_policy_for_run(model, kMega, 1, 2 << 20), std::invalid_argument);
  EXPECT_THROW(choose_policy_for_run(model, 0, 1, 10), std::invalid_argument);
  EXPECT_THROW(choose_policy_for_run(model, 1 << 30, 1, 10, -0.1), std::invalid_argument);
  EXPECT_THROW(choose_policy_for_run(model, 1 << 30, 1, 10, std::nan("")), std::invalid_argument);
  EXPECT_THROW(choose_policy_for_run({}, kMega, 1, 10), std::invalid_argument);
  EXPECT_THROW(build_compressor_config_for_policy({}, "", "default"), std::invalid_argument);
  EXPECT_THROW(build_compressor_config_for_policy(model, "", "Default"), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
