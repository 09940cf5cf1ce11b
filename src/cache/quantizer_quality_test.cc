// How much quantization loses, with bounds on both sides: an error that is too small is a mistake
// as well.
#include <gtest/gtest.h>

#include <cmath>

#include "cache/quantizer_test_data.h"
#include "kvquant/quantizer.h"

namespace kvquant {
namespace {

using testing::make_batch;
using testing::PaddedBatch;

constexpr double kFraction = 0.01;

LayerScalingFactors scales_of(const PaddedBatch& batch) {
  return {batch.shape.num_heads, batch.shape.head_dim,
          estimate_scaling_factors(batch.view(), batch.mask_view(),
                                   ScaleRule::percentile(100 * (1 - kFraction)))};
}

// Mean squared error of a round trip.
double mse_of(const PaddedBatch& batch, CacheSide side, const KVQuantizerOptions& options) {
  const auto decoded =
      fused_dequantize_batch(fused_quantize_batch(side, batch.view(), batch.mask_view(), options));
  double sum = 0;
  for (size_t i = 0; i < decoded.size(); ++i) {
    const double error = double{decoded[i]} - batch.x[i];
    sum += error * error;
  }
  return sum / static_cast<double>(decoded.size());
}

// Fitted to the normalised values that are no outliers.
std::vector<float> fitted_codebook(const PaddedBatch& batch, CacheSide side,
                                   const LayerScalingFactors& scales, int bits) {
  const auto mask = fused_quantize_batch(side, batch.view(), batch.mask_view(),
                                         {get_cached_codebook("nuq2"), scales, kFraction})
                        .outlier_mask();
  const auto [B, H, S, D] = batch.shape;
  std::vector<float> rest;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < S * D; ++i) {
        const int64_t at = (b * H + h) * S * D + i;
        if (mask[at] == 0) rest.push_back(batch.x[at] / scales.scales[h * D + i % D]);
      }
    }
  }
  return compute_nuq_codebook(rest, {}, bits);
}

PaddedBatch normal_batch() {
  return make_batch({.num_heads = 2, .head_dim = 64, .lengths = {2048}});
}

TEST(QuantizerQuality, FittedCodebooksReachTheOptimumOnNormalData) {
  const PaddedBatch batch = normal_batch();
  const LayerScalingFactors scales = scales_of(batch);
  const struct {
    int bits;
    double optimum, limit;
  } cases[] = {{4, 0.0068, 0.0071}, {3, 0.0263, 0.0273}, {2, 0.0966, 0.100}};
  for (const auto& [bits, optimum, limit] : cases) {
    const auto book = fitted_codebook(batch, CacheSide::kKeys, scales, bits);
    const double mse = mse_of(batch, CacheSide::kKeys, {book, scales, kFraction});
    RecordProperty("keys_" + std::to_string(bits), std::to_string(mse));
    EXPECT_LE(mse, limit) << bits;
    EXPECT_GE(mse, 0.98 * optimum) << bits;
    // Two of the 64 values of a row, 3%, are outliers; the rest fill less of the channel's range.
    const auto value_book = fitted_codebook(batch, CacheSide::kValues, scales, bits);
    const double value_mse = mse_of(batch, CacheSide::kValues, {value_book, scales, kFraction});
    RecordProperty("values_" + std::to_string(bits), std::to_string(value_mse));
    EXPECT_LE(value_mse, limit) << bits;
    EXPECT_GE(value_mse, 0.75 * optimum) << bits;
  }
}

TEST(QuantizerQuality, HeuristicCodebooksComeNear) {
  const PaddedBatch batch = normal_batch();
  const LayerScalingFactors scales = scales_of(batch);
  const double mse =
      mse_of(batch, CacheSide::kKeys, {get_cached_codebook("nuq3"), scales, kFraction});
  EXPECT_LE(mse, 0.05);
  EXPECT_GE(mse, 0.98 * 0.0263);
}

// The best 8 levels for Student's t with 3 degrees between its 0.5% and 99.5% quantiles, +-5.841,
// reach 0.0870 (Lloyd's iteration on the density). For values, outliers are the largest of a token
// rather than of a channel, and what is left reaches a little beyond the codebook.
TEST(QuantizerQuality, OutliersTakeTheTailsOfHeavyTailedData) {
  const PaddedBatch batch = make_batch(
      {.num_heads = 2, .head_dim = 64, .lengths = {2048}, .draw = testing::draw_student});
  const LayerScalingFactors scales = scales_of(batch);
  for (const CacheSide side : {CacheSide::kKeys, CacheSide::kValues}) {
    const auto book = fitted_codebook(batch, side, scales, 3);
    const double with = mse_of(batch, side, {book, scales, kFraction});
    const double without = mse_of(batch, side, {book, scales, 0});
    EXPECT_GE(with, 0.96 * 0.0870);
    EXPECT_LE(with, (side == CacheSide::kKeys ? 1.06 : 1.12) * 0.0870);
    EXPECT_GE(without, 5 * with);
  }
}

TEST(QuantizerQuality, ScalesTakeCareOfOutlierChannels) {
  testing::BatchRecipe recipe{.num_heads = 2, .head_dim = 64, .lengths = {1024}};
  const PaddedBatch plain = make_batch(recipe);
  recipe.draw = [](const CounterRng& rng, uint64_t i) {
    return testing::draw_normal(rng, i) * (i % 64 == 17 ? 32.0f : 1.0f);
  };
  PaddedBatch batch = make_batch(recipe);
  const auto book = get_cached_codebook("nuq4");
  const double plain_mse = mse_of(plain, CacheSide::kKeys, {book, scales_of(plain), kFraction});
  const double mse = mse_of(batch, CacheSide::kKeys, {book, scales_of(batch), kFraction});
  // A channel of 64 has 1024 times the variance, so the mean has (63 + 1024) / 64 times the error.
  EXPECT_NEAR(mse / plain_mse, 1087.0 / 64, 0.1 * 1087 / 64);
}

}  // namespace
}  // namespace kvquant
