#include "model/activation_collector.h"

#include <gtest/gtest.h>

#include <cstring>

#include "model/layer_stream.h"
#include "model/session.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

std::vector<int32_t> some_tokens(int64_t count, int32_t first) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(first + i * 13 % 997));
  return tokens;
}

class Collectors : public testing::Test {
 protected:
  void feed(const std::vector<int32_t>& tokens, const char* spec = "fp16") {
    Session session(model_, {.spec = parse_spec(spec), .ubatch = 32});
    session.feed(tokens);
  }

  Model model_ = Model::load(kEmbedded, {.precision = Precision::kF32});
};

TEST_F(Collectors, HoldTheKeysAndValuesThatTheStreamSees) {
  const std::vector<std::vector<int32_t>> samples = {some_tokens(50, 5), some_tokens(50, 40)};
  ActivationCollector collector(model_, 2);
  collector.install_hooks();
  for (const auto& sample : samples) {
    feed(sample);
    collector.increment_sample_count();
  }
  feed(some_tokens(7, 1));  // more than max_samples
  collector.increment_sample_count();
  collector.remove_hooks();
  EXPECT_EQ(collector.num_samples(), 2);
  stream_layers(model_, samples, {.ubatch = 32}, [&](int64_t layer, const LayerActivations& a) {
    const auto keys = collector.get_keys(layer), values = collector.get_values(layer);
    const int64_t expected[] = {2, a.num_kv_heads(), 50, a.head_dim()};
    EXPECT_TRUE(std::equal(std::begin(expected), std::end(expected), keys.shape));
    for (int64_t s = 0; s < 2; ++s) {
      for (int64_t h = 0; h < a.num_kv_heads(); ++h) {
        for (int64_t t = 0; t < 50; ++t) {
          const size_t bytes = static_cast<size_t>(a.head_dim()) * sizeof(float);
          ASSERT_EQ(std::memcmp(&keys.view()(s, h, t, 0), &a.keys(s * 50 + t, h, 0), bytes), 0);
          ASSERT_EQ(std::memcmp(&values.view()(s, h, t, 0), &a.values(s * 50 + t, h, 0), bytes), 0);
        }
      }
    }
  });
}

TEST_F(Collectors, CountEverySequenceOfABatch) {
  Transformer& transformer = model_.transformer();
  KvCache cache(transformer.kv_shape(), parse_spec("fp16"), CacheMode::kAsServed,
                transformer.rope_table(), model_.pool());
  const auto a = cache.add_sequence(), b = cache.add_sequence();
  ActivationCollector collector(model_, 5);
  collector.install_hooks();
  const auto one = some_tokens(9, 3), two = some_tokens(9, 8);
  const ForwardChunk batch[] = {{a, one}, {b, two}};
  transformer.forward(batch, cache);
  collector.increment_sample_count();
  EXPECT_EQ(collector.num_samples(), 2);
  const auto keys = collector.get_keys(0);
  EXPECT_EQ(keys.shape[0], 2);
  EXPECT_EQ(keys.shape[2], 9);
  EXPECT_NE(keys.view()(0, 0, 0, 0), keys.view()(1, 0, 0, 0));
}

TEST_F(Collectors, ChangeNothingOfWhatTheModelComputes) {
  const auto tokens = some_tokens(100, 5);
  const auto logits = [&] {
    Session session(model_, {.spec = parse_spec("nuq3-1%,recent=10"), .ubatch = 32});
    const auto out = session.feed(tokens);
    return std::vector<float>(out.begin(), out.end());
  };
  const auto before = logits();
  ActivationCollector collector(model_, 1);
  collector.install_hooks();
  EXPECT_EQ(logits(), before);
  collector.remove_hooks();
  EXPECT_EQ(logits(), before);
}

TEST_F(Collectors, RefuseWhatCannotBe) {
  EXPECT_THROW(ActivationCollector(model_, 0), std::invalid_argument);
  ActivationCollector collector(model_, 3);
  EXPECT_THROW(collector.get_keys(0), std::invalid_argument);  // no sample
  collector.install_hooks();
  collector.install_hooks();  // again: nothing
  {
    ActivationCollector other(model_, 3);
    EXPECT_THROW(other.install_hooks(), std::invalid_argument);
  }
  EXPECT_TRUE(model_.transformer().is_observed());
  EXPECT_THROW(
      stream_layers(model_, std::vector<std::vector<int32_t>>{{1}}, {}, [](auto, const auto&) {}),
      std::invalid_argument);
  feed(some_tokens(5, 1));
  collector.increment_sample_count();
  EXPECT_THROW(collector.get_values(-1), std::invalid_argument);
  EXPECT_THROW(collector.get_values(model_.config().num_layers), std::invalid_argument);
  EXPECT_EQ(collector.get_values(0).shape[2], 5);
  feed(some_tokens(6, 1));
  collector.increment_sample_count();
  EXPECT_THROW(collector.get_values(0), std::invalid_argument);  // 5 and 6 tokens
}

TEST_F(Collectors, TakeTheirHooksWithThem) {
  {
    ActivationCollector collector(model_, 1);
    collector.install_hooks();
  }
  EXPECT_FALSE(model_.transformer().is_observed());
  feed(some_tokens(5, 1));
}

}  // namespace
}  // namespace kvquant
