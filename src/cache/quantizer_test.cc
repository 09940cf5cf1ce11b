#include "kvquant/quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cache/quantizer_test_data.h"

namespace kvquant {
namespace {

using testing::BatchRecipe;
using testing::difference;
using testing::make_batch;
using testing::PaddedBatch;
using testing::PaddingSide;

constexpr CacheSide kSides[] = {CacheSide::kKeys, CacheSide::kValues};

QuantizedKVCache quantize(CacheSide side, const PaddedBatch& batch,
                          const KVQuantizerOptions& options, const KeyThresholds& frozen = {}) {
  return fused_quantize_batch(side, batch.view(), batch.mask_view(), options, frozen);
}

KVQuantizerOptions options_of(const char* codebook, double fraction, int64_t block_size = 256,
                              LayerScalingFactors scales = {}) {
  return {get_cached_codebook(codebook), std::move(scales), fraction, block_size};
}

// The definition by sorting, for one head of one sequence.
class Oracle {
 public:
  Oracle(const PaddedBatch& batch, const KVQuantizerOptions& options, int64_t b, int64_t h)
      : batch_(batch), options_(options), b_(b), h_(h) {
    for (int64_t s = 0; s < batch.shape.seq_len; ++s) {
      if (batch.is_real(b, s)) tokens_.push_back(s);
    }
  }

  float scale(int64_t c) const {
    const auto& scales = options_.scaling_factors.scales;
    return scales.empty() ? 1 : scales[h_ * batch_.shape.head_dim + c];
  }
  float normalised(size_t t, int64_t c) const {
    return scale(c) == 0 ? 0 : batch_.at(b_, h_, tokens_[t], c) * (1 / scale(c));
  }

  // [tokens][head_dim]
  std::vector<std::vector<bool>> outliers(CacheSide side) const {
    const int64_t head_dim = batch_.shape.head_dim;
    std::vector<std::vector<bool>> marks(tokens_.size(), std::vector<bool>(head_dim));
    const double fraction = options_.outlier_fraction;
    const auto size = static_cast<double>(tokens_.size());
    const auto num_key = static_cast<size_t>(fraction * size + 1e-9);
    const auto num_value =
        static_cast<size_t>(std::ceil(static_cast<double>(head_dim) * fraction / 2 - 1e-9));
    for (int64_t c = 0; side == CacheSide::kKeys && c < head_dim; ++c) {
      std::vector<size_t> order(tokens_.size());
      for (size_t t = 0; t < order.size(); ++t) order[t] = t;
      std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) {
        return std::fabs(normalised(i, c)) > std::fabs(normalised(j, c));
      });
      for (size_t i = 0; i < num_key; ++i) marks[order[i]][c] = true;
    }
    for (size_t t = 0; side == CacheSide::kValues && t < tokens_.size(); ++t) {
      std::vector<int64_t> order(head_dim);
      for (int64_t c = 0; c < head_dim; ++c) order[c] = c;
      for (const float sign : {1.0f, -1.0f}) {
        std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
          return sign * normalised(t, i) > sign * normalised(t, j);
        });
        const size_t count = std::min(num_value, order.size());
        for (size_t i = 0; i < count; ++i) marks[t][order[i]] = true;
        order.erase(order.begin(), order.begin() + static_cast<int64_t>(count));
        std::sort(order.begin(), order.end());
      }
    }
    return marks;
  }

  // [tokens, head_dim]
  std::vector<uint8_t> codes() const {
    std::vector<float> y;
    for (size_t t = 0; t < tokens_.size(); ++t) {
      for (int64_t c = 0; c < batch_.shape.head_dim; ++c) {
        y.push_back(std::clamp(normalised(t, c), -1e30f, 1e30f));
      }
    }
    std::vector<uint8_t> codes(y.size());
    quantize_to_nuq(y, options_.codebook, codes);
    return codes;
  }

  const std::vector<int64_t>& tokens() const { return tokens_; }

 private:
  const PaddedBatch& batch_;
  const KVQuantizerOptions& options_;
  int64_t b_, h_;
  std::vector<int64_t> tokens_;  // positions
};

void expect_defined(CacheSide side, const PaddedBatch& batch, const KVQuantizerOptions& options) {
  const QuantizedKVCache cache = quantize(side, batch, options);
  const auto codes = cache.quantized_indices();
  const auto mask = cache.outlier_mask();
  const auto values = cache.outlier_values();
  const auto decoded = fused_dequantize_batch(cache);
  std::vector<uint8_t> seen(codes.size());
  int mistakes = 0;
  for (int64_t b = 0; b < batch.shape.batch; ++b) {
    for (int64_t h = 0; h < batch.shape.num_heads; ++h) {
      const Oracle oracle(batch, options, b, h);
      const auto outliers = oracle.outliers(side);
      const auto nearest = oracle.codes();
      for (size_t t = 0; t < oracle.tokens().size(); ++t) {
        for (int64_t c = 0; c < batch.shape.head_dim; ++c) {
          const auto i = static_cast<size_t>(batch.index(b, h, oracle.tokens()[t], c));
          const float x = batch.x[i];
          const uint8_t code = nearest[t * static_cast<size_t>(batch.shape.head_dim) + c];
          const bool is_outlier = outliers[t][c];
          mistakes += codes[i] != code || (mask[i] != 0) != is_outlier;
          mistakes += values[i] != (is_outlier ? x : 0);
          mistakes += decoded[i] != (is_outlier ? x : options.codebook[code] * oracle.scale(c));
          seen[i] = 1;
        }
      }
    }
  }
  for (size_t i = 0; i < seen.size(); ++i) {
    mistakes += seen[i] == 0 && (codes[i] != 0 || mask[i] != 0 || decoded[i] != 0);
  }
  EXPECT_EQ(mistakes, 0);
}

TEST(Quantizer, DoesWhatTheDefinitionSaysForEveryShape) {
  int cut = 0;
  for (const int64_t head_dim : {1, 2, 3, 8, 16, 64, 80, 128, 256}) {
    for (const double fraction : {0.0, 0.01, 0.05}) {
      const char* books[] = {"nuq2", "nuq3", "nuq4"};
      const char* book = books[cut++ % 3];
      const PaddedBatch batch = make_batch({.num_heads = 2,
                                            .head_dim = head_dim,
                                            .lengths = {0, 1, 63, 64, 65, 127, 257},
                                            .draw = testing::draw_student});
      SCOPED_TRACE(::testing::Message() << book << ' ' << head_dim << ' ' << fraction);
      for (const CacheSide side : kSides) {
        expect_defined(side, batch,
                       options_of(book, fraction, 64, testing::varied_scales(2, head_dim)));
      }
    }
  }
}

TEST(Quantizer, DoesWhatTheDefinitionSaysForConstantTiedTinyAndHugeValues) {
  const testing::Draw draws[] = {
      [](const CounterRng&, uint64_t) { return 0.75f; },
      [](const CounterRng&, uint64_t) { return 0.0f; },
      testing::draw_tied,
      [](const CounterRng& rng, uint64_t i) { return 1e-41f * testing::draw_normal(rng, i); },
      [](const CounterRng& rng, uint64_t i) { return 4e37f * testing::draw_normal(rng, i); },
      [](const CounterRng& rng, uint64_t i) {  // outlier channels
        return testing::draw_normal(rng, i) * (i % 16 == 5 ? 50.0f : 1.0f);
      }};
  for (const testing::Draw& draw : draws) {
    const PaddedBatch batch = make_batch({.lengths = {130, 7, 300}, .draw = draw});
    for (const CacheSide side : kSides) {
      expect_defined(side, batch, options_of("nuq3", 0.02));
      expect_defined(side, batch, options_of("nuq3", 0.02, 128, testing::varied_scales(2, 16)));
    }
  }
}

TEST(Quantizer, NeverReadsPadding) {
  BatchRecipe recipe{.lengths = {70, 0, 130}, .draw = testing::draw_student, .extra_padding = 9};
  for (const CacheSide side : kSides) {
    for (const PaddingSide padding_side : {PaddingSide::kLeft, PaddingSide::kRight}) {
      recipe.side = padding_side;
      recipe.padding = 0;
      const auto options = options_of("nuq4", 0.03);
      const QuantizedKVCache with_zeros = quantize(side, make_batch(recipe), options);
      for (const float padding : {NAN, INFINITY, 3e38f}) {
        recipe.padding = padding;
        const QuantizedKVCache cache = quantize(side, make_batch(recipe), options);
        EXPECT_EQ(difference(cache, with_zeros), "");
        EXPECT_EQ(fused_dequantize_batch(cache), fused_dequantize_batch(with_zeros));
        EXPECT_EQ(cache.key_thresholds(), with_zeros.key_thresholds());
        EXPECT_EQ(cache.memory_bytes(), with_zeros.memory_bytes());
      }
    }
  }
}

TEST(Quantizer, StoresTheSameForLeftAndRightPaddingAndForASequenceAlone) {
  const std::vector<int64_t> lengths = {200, 0, 64, 1};
  for (const CacheSide side : kSides) {
    const auto options = options_of("nuq3", 0.04, 64);
    BatchRecipe recipe{.lengths = lengths, .extra_padding = 3};
    const QuantizedKVCache right = quantize(side, make_batch(recipe), options);
    recipe.side = PaddingSide::kLeft;
    const QuantizedKVCache left = quantize(side, make_batch(recipe), options);
    EXPECT_EQ(difference(left, right), "");
    EXPECT_EQ(left.seq_lengths(), lengths);
    for (size_t b = 0; b < lengths.size(); ++b) {
      const PaddedBatch alone = make_batch({.lengths = {lengths[b]}, .streams = {b}});
      const auto x = row_major(alone.x.data(), {2, lengths[b], 16});
      const QuantizedKVCache cache = fused_quantize(side, x, options);
      EXPECT_EQ(
          difference(testing::stored(cache, 0), testing::stored(right, static_cast<int64_t>(b))),
          "");
      EXPECT_EQ(fused_dequantize(cache).size(), alone.x.size());
    }
  }
}

TEST(Quantizer, ReadsStridedViews) {
  const PaddedBatch batch = make_batch({.lengths = {90, 40}});
  const auto [B, H, S, D] = batch.shape;
  std::vector<float> token_major(batch.x.size());  // [B, S, H, D]
  const TensorView<const float, 4> view{token_major.data(), {B, H, S, D}, {S * H * D, D, H * D, 1}};
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t s = 0; s < S; ++s) {
        for (int64_t c = 0; c < D; ++c) {
          token_major[((b * S + s) * H + h) * D + c] = batch.at(b, h, s, c);
        }
      }
    }
  }
  const auto options = options_of("nuq2", 0.01);
  for (const CacheSide side : kSides) {
    EXPECT_EQ(difference(fused_quantize_batch(side, view, batch.mask_view(), options),
                         quantize(side, batch, options)),
              "");
  }
}

TEST(Quantizer, AppendsWhatQuantizingEverythingAtOnceStores) {
  for (const testing::Draw& draw :
       {testing::Draw(testing::draw_student), testing::Draw(testing::draw_tied)}) {
    const PaddedBatch all = make_batch({.lengths = {333, 150, 0, 333}, .draw = draw});
    for (const CacheSide side : kSides) {
      const auto options = options_of("nuq3", 0.03, 64, testing::varied_scales(2, 16));
      for (const int64_t prompt : {0, 1, 20, 64, 150, 332}) {
        QuantizedKVCache cache = quantize(side, testing::slice(all, 0, prompt), options);
        for (int64_t s = prompt, step = 1; s < 333; s += step, step = step * 3 % 101) {
          const PaddedBatch part = testing::slice(all, s, std::min<int64_t>(333, s + step));
          fused_append_batch(cache, part.view(), part.mask_view());
        }
        const QuantizedKVCache at_once = quantize(side, all, options, cache.key_thresholds());
        EXPECT_EQ(difference(cache, at_once), "") << "prompt of " << prompt;
        EXPECT_EQ(fused_dequantize_batch(cache), fused_dequantize_batch(at_once));
        EXPECT_EQ(cache.outlier_mask(), at_once.outlier_mask());
        if (side == CacheSide::kValues) {
          EXPECT_EQ(difference(cache, quantize(side, all, options)), "");
        }
      }
    }
  }
}

TEST(Quantizer, ThresholdsSelectTheSameOutliersAgain) {
  const PaddedBatch batch = make_batch({.lengths = {400, 99}, .draw = testing::draw_tied});
  const auto options = options_of("nuq3", 0.05);
  const QuantizedKVCache cache = quantize(CacheSide::kKeys, batch, options);
  EXPECT_EQ(difference(cache, quantize(CacheSide::kKeys, batch, options, cache.key_thresholds())),
            "");
}

// One head of one channel: |y| is 3 at tokens 4 and 7, else 0.5. 5% of 20 tokens are one outlier.
TEST(Quantizer, KeepsLaterKeysExactlyOnlyAboveTheSmallestOutlierOfThePrompt) {
  std::vector<float> keys(20, 0.5f);
  keys[4] = keys[7] = -3;
  const auto options = options_of("nuq2", 0.05);
  QuantizedKVCache cache =
      fused_quantize(CacheSide::kKeys, row_major<const float>(keys.data(), {1, 20, 1}), options);
  EXPECT_EQ(cache.key_thresholds().magnitudes, std::vector<float>{3});
  EXPECT_EQ(cache.key_thresholds().ties, std::vector<int32_t>{1});
  const float later[] = {3, -3.5f, 2.9f};
  fused_append_batch(cache, row_major<const float>(later, {1, 1, 3, 1}), {});
  const auto mask = cache.outlier_mask();
  EXPECT_EQ(std::vector<uint8_t>(mask.begin() + 4, mask.end()),
            (std::vector<uint8_t>{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}));
}

TEST(Quantizer, ThresholdsOfAShortPromptLieBeyondTheCodebookAndAllThatWasSeen) {
  const float prompt[] = {0.25f, 2};  // one token of two channels
  QuantizedKVCache cache = fused_quantize(
      CacheSide::kKeys, row_major<const float>(prompt, {1, 1, 2}), options_of("nuq4", 0.01));
  EXPECT_EQ(cache.key_thresholds().magnitudes, (std::vector<float>{1, 2}));
  const float later[] = {1, 2, 1.5f, -2.5f};
  fused_append_batch(cache, row_major<const float>(later, {1, 1, 2, 2}), {});
  EXPECT_EQ(cache.outlier_mask(), (std::vector<uint8_t>{0, 0, 0, 0, 1, 1}));

  QuantizedKVCache none = fused_quantize(
      CacheSide::kKeys, row_major<const float>(prompt, {1, 1, 2}), options_of("nuq4", 0));
  EXPECT_TRUE(std::isinf(none.key_thresholds().magnitudes[0]));
}

TEST(Quantizer, ASequenceThatStartsLateSetsItsThresholdsThen) {
  const PaddedBatch all = make_batch({.lengths = {100, 100}});
  PaddedBatch first = testing::slice(all, 0, 50);
  std::fill(first.mask.begin() + 50, first.mask.end(), uint8_t{0});
  const PaddedBatch second = testing::slice(all, 50, 100);
  const auto options = options_of("nuq3", 0.02);
  QuantizedKVCache cache = quantize(CacheSide::kKeys, first, options);
  EXPECT_EQ(cache.key_thresholds().ties[32], -1);
  fused_append_batch(cache, second.view(), second.mask_view());
  const PaddedBatch alone = testing::slice(all, 50, 100);
  EXPECT_EQ(difference(testing::stored(cache, 1),
                       testing::stored(quantize(CacheSide::kKeys, alone, options), 1)),
            "");
}

TEST(Quantizer, ViewsHaveThePositionsOfAllCalls) {
  const float x[] = {1, 2, NAN, NAN, 3, 4};  // [1, 1, 3, 2]: padding in the middle of two calls
  const uint8_t mask[] = {1, 0, 1};
  QuantizedKVCache cache =
      fused_quantize_batch(CacheSide::kValues, row_major<const float>(x, {1, 1, 2, 2}),
                           row_major<const uint8_t>(mask, {1, 2}), options_of("nuq2", 0.01));
  fused_append_batch(cache, row_major<const float>(x + 4, {1, 1, 1, 2}), {});
  EXPECT_EQ(cache.seq_len(), 3);
  EXPECT_EQ(cache.seq_lengths(), std::vector<int64_t>{2});
  EXPECT_EQ(fused_dequantize(cache), (std::vector<float>{1, 2, 0, 0, 3, 4}));
}

TEST(Quantizer, ExtractsOutliersAsTheDenseViewsHaveThem) {
  const PaddedBatch batch = make_batch({.lengths = {150, 0, 64}, .side = PaddingSide::kLeft});
  const BatchedKVQuantizer quantizer("nuq3", testing::varied_scales(2, 16), 0.04, 64);
  const auto keys = quantizer.quantize_keys(batch.view(), batch.mask_view());
  const auto values = quantizer.quantize_values(batch.view(), batch.mask_view());
  const auto key_mask = keys.outlier_mask();
  const auto value_mask = values.outlier_mask();
  const auto key_values = keys.outlier_values();
  const auto value_values = values.outlier_values();
  for (int64_t h = 0; h < 2; ++h) {
    const auto csc = quantizer.extract_key_outliers_to_sparse(keys, h);
    const auto csr = quantizer.extract_value_outliers_to_sparse(values, h);
    ASSERT_EQ(csc.size(), 3u);
    ASSERT_EQ(csr.size(), 3u);
    for (int64_t b = 0; b < 3; ++b) {
      const int64_t length = keys.seq_lengths()[b];
      const SparseDense by_channel = csc[b].to_dense(), by_token = csr[b].to_dense();
      ASSERT_EQ(by_channel.num_rows, 16);
      ASSERT_EQ(by_channel.num_cols, length);
      ASSERT_EQ(by_token.num_rows, length);
      int64_t num_key = 0, num_value = 0;
      for (int64_t t = 0; t < length; ++t) {
        for (int64_t c = 0; c < 16; ++c) {
          const int64_t i = batch.index(b, h, 150 - length + t, c);
          EXPECT_EQ(by_channel.values[c * length + t], key_values[i]);
          EXPECT_EQ(by_token.values[t * 16 + c], value_values[i]);
          num_key += key_mask[i];
          num_value += value_mask[i];
        }
      }
      EXPECT_EQ(csc[b].num_nonzeros(), num_key);
      EXPECT_EQ(csr[b].num_nonzeros(), num_value);
      EXPECT_EQ(num_key, length * 4 / 100 * 16);
      EXPECT_EQ(num_value, length * 2);
    }
  }
}

TEST(Quantizer, CountsABlockWhenItBegins) {
  const auto options = options_of("nuq3", 0, 128);
  const auto bytes_of = [&](int64_t length) {
    return quantize(CacheSide::kValues, make_batch({.lengths = {length}}), options).memory_bytes();
  };
  EXPECT_EQ(bytes_of(128), bytes_of(1));
  EXPECT_EQ(bytes_of(256), bytes_of(129));
  // A block of two tiles, 8 * 3 * 16 bytes each, for both heads; the ends of no outliers, u16.
  EXPECT_EQ(bytes_of(129) - bytes_of(128), 2 * (2 * 8 * 3 * 16 + 128 * 2));
  EXPECT_GT(bytes_of(1), bytes_of(0));
}

TEST(Quantizer, ClassAndFunctionsAreOne) {
  const PaddedBatch batch = make_batch({.lengths = {80, 33}});
  const PaddedBatch more = make_batch({.lengths = {5, 3}, .streams = {7, 8}});
  const BatchedKVQuantizer quantizer("nuq4-1%");
  EXPECT_EQ(quantizer.options(), options_of("nuq4", 0.01));
  for (const CacheSide side : kSides) {
    const bool is_key = side == CacheSide::kKeys;
    QuantizedKVCache a = is_key ? quantizer.quantize_keys(batch.view(), batch.mask_view())
                                : quantizer.quantize_values(batch.view(), batch.mask_view());
    QuantizedKVCache b = quantize(side, batch, quantizer.options());
    if (is_key) {
      quantizer.append_keys(a, more.view(), more.mask_view());
      EXPECT_THROW(quantizer.append_values(a, more.view(), more.mask_view()),
                   std::invalid_argument);
    } else {
      quantizer.append_values(a, more.view(), more.mask_view());
    }
    fused_append_batch(b, more.view(), more.mask_view());
    EXPECT_EQ(difference(a, b), "");
    EXPECT_EQ(quantizer.dequantize(a), fused_dequantize_batch(b));
    EXPECT_EQ(a.bits(), 4);
    EXPECT_EQ(a.scaling_factors(), std::vector<float>(2 * 16, 1.0f));
    EXPECT_EQ(a.codebook().size(), 16u);
  }
}

}  // namespace
}  // namespace kvquant
