#include "kvquant/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "cache/quantizer_test_data.h"

namespace kvquant {
namespace {

using testing::make_batch;
using testing::PaddedBatch;
using testing::PaddingSide;

// Queries, keys and values of the same tokens.
struct Prompt {
  PaddedBatch query, key, value;
  TensorView<const uint8_t, 2> mask() const { return key.mask_view(); }
};

struct PromptRecipe {
  int64_t num_heads = 4, num_kv_heads = 2, head_dim = 16;
  std::vector<int64_t> lengths;
  PaddingSide side = PaddingSide::kRight;
  float padding = 0;
  std::vector<uint64_t> sequences = {0, 1, 2, 3};
};

Prompt make_prompt(const PromptRecipe& recipe) {
  const auto make = [&](int64_t heads, uint64_t kind, testing::Draw draw) {
    std::vector<uint64_t> streams;
    for (size_t b = 0; b < recipe.lengths.size(); ++b) {
      streams.push_back(10 * recipe.sequences[b] + kind);
    }
    return make_batch({.num_heads = heads,
                       .head_dim = recipe.head_dim,
                       .lengths = recipe.lengths,
                       .draw = std::move(draw),
                       .side = recipe.side,
                       .padding = recipe.padding,
                       .extra_padding = 2,
                       .streams = streams});
  };
  return {make(recipe.num_heads, 0, testing::draw_normal),
          make(recipe.num_kv_heads, 1, testing::draw_student),
          make(recipe.num_kv_heads, 2, testing::draw_normal)};
}

Prompt slice(const Prompt& from, int64_t first, int64_t end) {
  return {testing::slice(from.query, first, end), testing::slice(from.key, first, end),
          testing::slice(from.value, first, end)};
}

std::vector<float> forward(PrefillQuantizedAttention& attention, const Prompt& prompt,
                           bool is_prefill = true) {
  return attention.forward(prompt.query.view(), prompt.key.view(), prompt.value.view(),
                           prompt.mask(), is_prefill);
}

// The textbook's attention over decoded keys and values, all arithmetic in T.
template <class T>
std::vector<T> naive(const PaddedBatch& query, const std::vector<float>& keys,
                     const std::vector<float>& values, int64_t num_kv_heads) {
  const auto [B, H, S, D] = query.shape;
  std::vector<T> out(query.x.size());
  const T scale = 1 / std::sqrt(static_cast<T>(D));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      const int64_t kv = (b * num_kv_heads + h / (H / num_kv_heads)) * S * D;
      for (int64_t i = 0; i < S; ++i) {
        if (!query.is_real(b, i)) continue;
        std::vector<T> p(i + 1);
        T most = -INFINITY, sum = 0;
        for (int64_t j = 0; j <= i; ++j) {
          T dot = 0;
          for (int64_t c = 0; c < D; ++c) {
            dot += static_cast<T>(query.at(b, h, i, c)) * static_cast<T>(keys[kv + j * D + c]);
          }
          p[j] = query.is_real(b, j) ? scale * dot : -INFINITY;
          most = std::max(most, p[j]);
        }
        for (T& x : p) sum += x = std::exp(x - most);
        for (int64_t j = 0; j <= i; ++j) {
          for (int64_t c = 0; c < D; ++c) {
            out[query.index(b, h, i, c)] += p[j] / sum * static_cast<T>(values[kv + j * D + c]);
          }
        }
      }
    }
  }
  return out;
}

template <class A, class B>
double max_difference(const std::vector<A>& a, const std::vector<B>& b) {
  double most = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    most = std::max(most, std::isnan(difference) ? INFINITY : difference);
  }
  return most;
}

void expect_attention_over(const PrefillQuantizedAttention& attention, const Prompt& prompt,
                           const std::vector<float>& out) {
  const auto keys = fused_dequantize_batch(attention.key_cache());
  const auto values = fused_dequantize_batch(attention.value_cache());
  const int64_t num_kv_heads = prompt.key.shape.num_heads;
  const auto exact = naive<double>(prompt.query, keys, values, num_kv_heads);
  const auto plain = naive<float>(prompt.query, keys, values, num_kv_heads);
  EXPECT_LE(max_difference(out, exact), 2 * max_difference(plain, exact));
}

TEST(PrefillAttention, IsAttentionOverTheDecodedKeysAndValues) {
  for (const int64_t head_dim : {8, 16, 64, 80, 128}) {
    for (const int64_t group : {1, 4, 8}) {
      const PromptRecipe recipe{.num_heads = 2 * group,
                                .num_kv_heads = 2,
                                .head_dim = head_dim,
                                .lengths = {1, 0, 63, 130},
                                .side = group == 4 ? PaddingSide::kLeft : PaddingSide::kRight};
      const Prompt prompt = make_prompt(recipe);
      PrefillQuantizedAttention attention(2 * group, head_dim, "nuq3", {.num_kv_heads = 2});
      expect_attention_over(attention, prompt, forward(attention, prompt));
    }
  }
}

TEST(PrefillAttention, DecodeStepsReadAllThatIsThere) {
  for (const double fraction : {0.0, 0.02}) {
    const Prompt all = make_prompt({.lengths = {150, 130}, .side = PaddingSide::kLeft});
    PrefillQuantizedAttention attention(
        4, 16, "nuq4", {.outlier_fraction = fraction, .block_size = 64, .num_kv_heads = 2});
    std::vector<std::vector<float>> parts = {forward(attention, slice(all, 0, 60))};
    const LayerScalingFactors scales = attention.key_cache().options().scaling_factors;
    const int64_t cuts[] = {60, 61, 62, 100, 152};
    for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
      parts.push_back(forward(attention, slice(all, cuts[i], cuts[i + 1]), false));
    }
    EXPECT_EQ(attention.key_cache().options().scaling_factors, scales);
    EXPECT_EQ(attention.key_cache().seq_lengths(), (std::vector<int64_t>{150, 130}));
    std::vector<float> joined(all.query.x.size());
    int64_t first = 0;
    for (const auto& part : parts) {
      const auto part_len = static_cast<int64_t>(part.size()) / (2 * 4 * 16);
      for (int64_t row = 0; row < 2 * 4; ++row) {
        std::copy_n(part.begin() + row * part_len * 16, part_len * 16,
                    joined.begin() + (row * 152 + first) * 16);
      }
      first += part_len;
    }
    expect_attention_over(attention, all, joined);
  }
}

TEST(PrefillAttention, ALongerPrefillWithTheSameCodesGivesTheSame) {
  const Prompt all = make_prompt({.lengths = {100}});
  const PrefillAttentionOptions options{
      .scaling_factors = testing::varied_scales(2, 16), .outlier_fraction = 0, .num_kv_heads = 2};
  PrefillQuantizedAttention at_once(4, 16, "nuq3", options), stepwise(4, 16, "nuq3", options);
  const auto expected = forward(at_once, all);
  forward(stepwise, slice(all, 0, 98));
  for (int64_t s = 98; s < 102; ++s) {
    const auto out = forward(stepwise, slice(all, s, s + 1), false);
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t c = 0; c < 16; ++c) {
        EXPECT_NEAR(out[h * 16 + c], expected[(h * 102 + s) * 16 + c], 1e-5);
      }
    }
  }
  EXPECT_EQ(testing::difference(at_once.key_cache(), stepwise.key_cache()), "");
  EXPECT_EQ(testing::difference(at_once.value_cache(), stepwise.value_cache()), "");
}

TEST(PrefillAttention, NeverReadsPaddingAndLeavesZerosThere) {
  PromptRecipe recipe{.lengths = {40, 0, 90}};
  PrefillQuantizedAttention with_zeros(4, 16, "nuq3", {.num_kv_heads = 2});
  const auto expected = forward(with_zeros, make_prompt(recipe));
  for (const float padding : {NAN, 3e38f}) {
    recipe.padding = padding;
    const Prompt prompt = make_prompt(recipe);
    PrefillQuantizedAttention attention(4, 16, "nuq3", {.num_kv_heads = 2});
    const auto out = forward(attention, prompt);
    EXPECT_EQ(out, expected);
    EXPECT_EQ(testing::difference(attention.key_cache(), with_zeros.key_cache()), "");
    EXPECT_EQ(testing::difference(attention.value_cache(), with_zeros.value_cache()), "");
    for (int64_t s = 40; s < 92; ++s) EXPECT_EQ(out[s * 16], 0);
  }
}

TEST(PrefillAttention, ASequenceDoesNotDependOnItsBatchOrTheThreads) {
  const PrefillAttentionOptions options{.scaling_factors = testing::varied_scales(2, 16),
                                        .num_kv_heads = 2};
  PrefillAttentionOptions threaded = options;
  threaded.num_threads = 2;
  const PromptRecipe recipe{.lengths = {90, 130}};
  PrefillQuantizedAttention both(4, 16, "nuq3", threaded), alone(4, 16, "nuq3", options);
  const auto out = forward(both, make_prompt(recipe));
  for (size_t b = 0; b < 2; ++b) {
    PromptRecipe one = recipe;
    one.lengths = {recipe.lengths[b]};
    one.sequences = {b};
    const auto part = forward(alone, make_prompt(one));
    const int64_t seq_len = one.lengths[0] + 2;
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t i = 0; i < one.lengths[0] * 16; ++i) {
        ASSERT_EQ(part[h * seq_len * 16 + i],
                  out[(static_cast<int64_t>(b) * 4 + h) * 132 * 16 + i]);
      }
    }
  }
}

TEST(PrefillAttention, EstimatedScalesFillTheCodebooksRange) {
  const Prompt prompt = make_prompt({.lengths = {1000}});
  PrefillQuantizedAttention attention(4, 16, "nuq4", {.num_kv_heads = 2});
  EXPECT_GT(attention.compute_round_trip_error(prompt.key.view(), prompt.mask()).mse, 0);
  forward(attention, prompt);
  const auto scales = attention.key_cache().scaling_factors();
  const auto mask = attention.key_cache().outlier_mask();
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t c = 0; c < 16; ++c) {
      float largest = 0;
      for (int64_t s = 0; s < 1000; ++s) {
        const int64_t i = prompt.key.index(0, h, s, c);
        if (mask[i] == 0) largest = std::max(largest, std::fabs(prompt.key.x[i]));
      }
      EXPECT_EQ(largest, scales[h * 16 + c]);
    }
  }
}

TEST(PrefillAttention, RoundTripErrorIsOfTheRealTokensOnly) {
  const Prompt prompt = make_prompt({.lengths = {200, 37}, .padding = NAN});
  PrefillQuantizedAttention attention(
      4, 16, "nuq3", {.scaling_factors = testing::varied_scales(2, 16), .num_kv_heads = 2});
  const RoundTripError error = attention.compute_round_trip_error(prompt.key.view(), prompt.mask());
  forward(attention, prompt);
  const auto decoded = fused_dequantize_batch(attention.key_cache());
  double squares = 0, error_squares = 0, most = 0;
  for (size_t i = 0; i < decoded.size(); ++i) {
    if (std::isnan(prompt.key.x[i])) continue;
    const double x = prompt.key.x[i], difference = x - decoded[i];
    squares += x * x;
    error_squares += difference * difference;
    most = std::max(most, std::fabs(difference));
  }
  EXPECT_NEAR(error.mse, error_squares / (237 * 32), 1e-12);
  EXPECT_EQ(error.max_abs_error, most);
  EXPECT_NEAR(error.relative_error, std::sqrt(error_squares / squares), 1e-12);

  const Prompt none = make_prompt({.lengths = {0}});
  EXPECT_EQ(attention.compute_round_trip_error(none.key.view(), none.mask()).mse, 0);
}

TEST(PrefillAttention, ABatchWithoutRealTokensLeavesScalesToTheNextPrefill) {
  PrefillQuantizedAttention attention(4, 16, "nuq3", {.num_kv_heads = 2});
  const Prompt none = make_prompt({.lengths = {0, 0}});
  EXPECT_EQ(forward(attention, none), std::vector<float>(none.query.x.size()));
  const Prompt prompt = make_prompt({.lengths = {70}});
  expect_attention_over(attention, prompt, forward(attention, prompt));
  EXPECT_FALSE(attention.key_cache().options().scaling_factors.scales.empty());
}

TEST(PrefillAttention, RefusesWhatDoesNotFit) {
  EXPECT_REFUSED(PrefillQuantizedAttention(0, 16, "nuq3"), "num_heads is 0");
  EXPECT_REFUSED(PrefillQuantizedAttention(4, 12, "nuq3"), "head_dim 12");
  EXPECT_REFUSED(PrefillQuantizedAttention(4, 16, "nuq3", {.num_kv_heads = 3}), "does not divide");
  EXPECT_REFUSED(PrefillQuantizedAttention(4, 16, "nuq7"), "nuq7");
  EXPECT_REFUSED(PrefillQuantizedAttention(4, 16, "nuq3", {.num_threads = -1}), "num_threads");
  EXPECT_REFUSED(
      PrefillQuantizedAttention(4, 16, "nuq3", {.scaling_factors = testing::varied_scales(4, 8)}),
      "[4, 8] do not fit 4 heads of 16");

  PrefillQuantizedAttention attention(4, 16, "nuq3", {.num_kv_heads = 2});
  Prompt prompt = make_prompt({.lengths = {20, 10}});
  EXPECT_REFUSED(forward(attention, prompt, false), "the first call must be a prefill");
  EXPECT_REFUSED(attention.key_cache(), "no prefill");
  EXPECT_REFUSED(attention.forward(prompt.key.view(), prompt.key.view(), prompt.value.view(),
                                   prompt.mask(), true),
                 "query [2, 2, 22, 16] is not [2, 4, 22, 16]");
  forward(attention, prompt);
  EXPECT_REFUSED(forward(attention, make_prompt({.lengths = {3}}), false),
                 "a batch of 1 does not fit caches of 2");
  prompt.query.at(1, 3, 9, 15) = NAN;
  EXPECT_REFUSED(forward(attention, prompt, false),
                 "query: batch 1, head 3, token 9, channel 15 is nan");
  EXPECT_EQ(attention.key_cache().seq_len(), 22);
}

}  // namespace
}  // namespace kvquant
