#include "quant/key_basis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

#include "quant/calibration_test_data.h"

namespace kvquant {
namespace {

constexpr BasisShape kShape{2, 8};

Codec codec(const char* text) { return parse_spec(text).key; }

TEST(KeyBasis, IsTheFirstComponentsOfRotatedKeysAndTheirMean) {
  const Calibration calibration = test_calibration();  // rank 5
  const LayerCalibration& layer = calibration.layers[1];
  const ValueBasis basis = make_key_basis(codec("pca3"), kShape, &layer);
  EXPECT_EQ(basis.rank, 3);
  EXPECT_EQ(basis.mean, layer.key.rotated_mean);
  ASSERT_EQ(basis.decode.size(), 2u * 3 * 8);
  EXPECT_TRUE(std::equal(basis.decode.begin(), basis.decode.begin() + 24, layer.key.basis.begin()));
  EXPECT_TRUE(
      std::equal(basis.decode.begin() + 24, basis.decode.end(), layer.key.basis.begin() + 5 * 8));
  EXPECT_TRUE(basis.encode.empty());  // the same
  EXPECT_GT(basis.largest_value, 1000);
}

TEST(KeyBasis, HadamardMixesComponentsAndKeepsTheirSpan) {
  const Calibration calibration = test_calibration();
  const LayerCalibration& layer = calibration.layers[0];
  const ValueBasis plain = make_key_basis(codec("pca4"), kShape, &layer);
  const ValueBasis mixed = make_key_basis(codec("pca4+had+int4"), kShape, &layer);
  EXPECT_NE(plain.decode, mixed.decode);
  for (int64_t c = 0; c < 8; ++c) {  // the projector onto the span
    double a = 0, b = 0;
    for (int64_t r = 0; r < 4; ++r) {
      a += double{plain.decode[r * 8 + c]} * plain.decode[r * 8];
      b += double{mixed.decode[r * 8 + c]} * mixed.decode[r * 8];
    }
    EXPECT_NEAR(a, b, 1e-5);
  }
}

TEST(KeyBasis, OfLnnsIsThatOfValuesAndNeedsNoCalibration) {
  const ValueBasis basis = make_key_basis(codec("lnns"), kShape, nullptr);
  EXPECT_EQ(basis.decode, make_value_basis(codec("lnns"), kShape, nullptr).decode);
  EXPECT_EQ(basis.rank, 7);
}

TEST(KeyBasis, WaterfillingCountsWhatQueriesSeeOfAComponent) {
  constexpr BasisShape kWide{1, 32};
  LayerCalibration layer;  // components are channels, all as large as each other
  layer.key.rotated_mean.resize(32);
  layer.key.spectrum.assign(32, 1.0f);
  layer.key.basis.resize(32 * 32);
  for (size_t i = 0; i < 32; ++i) layer.key.basis[i * 33] = 1;
  layer.key.gram = layer.key.basis;
  const auto bands = [&] { return make_key_basis(codec("pca32+wf4"), kWide, &layer).bands; };
  EXPECT_EQ(bands(), (CodeBands{{0, 32, 0}}));
  layer.query.rotated_second_moment.assign(2 * 32, 1.0f);  // of two query heads
  EXPECT_EQ(bands(), (CodeBands{{0, 32, 0}}));
  for (size_t i = 0; i < 2 * 32; ++i) {
    layer.query.rotated_second_moment[i] = i % 32 < 16 ? 1.0f : 1e-6f;
  }
  EXPECT_EQ(bands(), (CodeBands{{16, 0, 0}}));
}

TEST(KeyBasis, IsRefusedWithoutWhatItNeeds) {
  const Calibration calibration = test_calibration();
  const auto refuses = [&](const char* text, const LayerCalibration* layer) {
    EXPECT_THROW(make_key_basis(codec(text), kShape, layer), std::invalid_argument) << text;
  };
  refuses("pca3", nullptr);
  refuses("pca6", &calibration.layers[0]);
  refuses("pcaw3", &calibration.layers[0]);
}

}  // namespace
}  // namespace kvquant
