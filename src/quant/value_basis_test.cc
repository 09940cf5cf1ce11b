#include "quant/value_basis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "quant/calibration_test_data.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{1, 4, 2, 16};
constexpr BasisShape kBasis{2, 16};

LayerCalibration fitted(int64_t rank = 0) {
  ThreadPool pool(1);
  const TestLayer layer(kShape, 2, 200, 3);
  return fit_layer(layer.views, {.rank = rank}, pool);
}

ValueBasis basis_of(const char* codec, const LayerCalibration* calibration) {
  return make_value_basis(parse_spec(codec).value, kBasis, calibration);
}

double dot(const float* a, const float* b, int64_t size) {
  return std::inner_product(a, a + size, b, 0.0, std::plus<>(),
                            [](float x, float y) { return double{x} * y; });
}

// A_i D_j of one head.
double product(const ValueBasis& basis, int64_t head, int64_t i, int64_t j) {
  const int64_t first = head * basis.rank;
  return dot(basis.encoder().data() + (first + i) * 16, basis.decode.data() + (first + j) * 16, 16);
}

TEST(ValueBasis, EncodingUndoesDecoding) {
  const LayerCalibration layer = fitted();
  for (const char* codec : {"pca16", "pca5", "pcaw16", "pcaw7", "lnns", "pca8+had+int8",
                            "pcaw4+had+int8", "pca16+wf4", "pcaw11+wf8"}) {
    const ValueBasis basis = basis_of(codec, &layer);
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t i = 0; i < basis.rank; ++i) {
        for (int64_t j = 0; j < basis.rank; ++j) {
          EXPECT_NEAR(product(basis, head, i, j), i == j ? 1 : 0, 2e-5) << codec;
        }
      }
    }
  }
}

TEST(ValueBasis, RanksArePrefixesOfTheStoredComponents) {
  const LayerCalibration layer = fitted();
  const ValueBasis basis = basis_of("pca3+int8", &layer);
  EXPECT_EQ(basis.rank, 3);
  EXPECT_TRUE(basis.encode.empty());
  ASSERT_EQ(basis.decode.size(), 2u * 3 * 16);
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t i = 0; i < 3 * 16; ++i) {
      EXPECT_EQ(basis.decode[head * 3 * 16 + i], layer.value.basis[head * 16 * 16 + i]);
    }
  }
  EXPECT_EQ(basis.mean, layer.value.channels.mean);
}

TEST(ValueBasis, WeightedLatentsAreAboutAsLargeAsValuesWhateverTheWeights) {
  LayerCalibration layer = fitted();
  const ValueBasis plain = basis_of("pcaw16", &layer);
  for (size_t i = 0; i < layer.value.weighted_encode.size(); ++i) {  // weights a 2^-20th
    layer.value.weighted_encode[i] *= 0x1p-10f;
    layer.value.weighted_decode[i] *= 0x1p10f;
  }
  const ValueBasis small = basis_of("pcaw16", &layer);
  EXPECT_EQ(small.encode, plain.encode);  // powers of two: to the bit
  EXPECT_EQ(small.decode, plain.decode);
}

TEST(ValueBasis, WaterfilledLatentsAreEquallyLargeAndSpanTheSame) {
  CalibrationShape shape{1, 2, 1, 64};
  ThreadPool pool(1);
  TestLayer data(shape, 1, 500, 3);
  for (size_t i = 0; i < data.values.size(); ++i) {  // large channels and small ones
    data.values[i] *= std::pow(0.93f, static_cast<float>(i % 64));
  }
  const LayerCalibration layer = fit_layer(data.views, {}, pool);
  const auto basis_with = [&](const char* codec) {
    return make_value_basis(parse_spec(codec).value, {1, 64}, &layer);
  };
  const ValueBasis plain = basis_with("pca64"), filled = basis_with("pca64+wf3");
  ASSERT_LT(filled.bands.channels[2], filled.bands.num_channels());  // not all alike
  EXPECT_EQ(filled.rank, filled.bands.num_channels());
  const float* gram = layer.value.gram.data();
  double least = 1e9, largest = 0;
  for (int64_t r = 0; r < filled.rank; ++r) {
    const float* row = filled.encode.data() + r * 64;
    double variance = 0;
    for (int64_t c = 0; c < 64; ++c) variance += row[c] * dot(gram + c * 64, row, 64);
    least = std::min(least, variance);
    largest = std::max(largest, variance);
    double within = 0;  // of the space of the leading components
    for (int64_t p = 0; p < filled.rank; ++p) {
      within += std::pow(dot(plain.decode.data() + p * 64, row, 64), 2);
    }
    EXPECT_NEAR(within, dot(row, row, 64), 1e-4 * within);
  }
  EXPECT_LT(largest, 12 * least);
  const float* leading = plain.decode.data();
  double widest = 0;
  for (int64_t c = 0; c < 64; ++c) widest += leading[c] * dot(gram + c * 64, leading, 64);
  EXPECT_GT(largest, 0.2 * widest);  // as large as values are
}

TEST(ValueBasis, TheNullspaceIsOrthogonalToOnesWithoutACalibration) {
  const ValueBasis basis = basis_of("lnns", nullptr);
  EXPECT_EQ(basis.rank, 15);
  const std::vector<float> ones(16, 1.0f);
  for (int64_t r = 0; r < 15; ++r) {
    EXPECT_NEAR(dot(basis.decode.data() + r * 16, ones.data(), 16), 0, 1e-6);
  }
  for (const float x : basis.mean) EXPECT_EQ(x, 0);
}

TEST(ValueBasis, LargeValuesHaveLatentsThatFp16Holds) {
  LayerCalibration layer = fitted();
  const ValueBasis basis = basis_of("pca16", &layer);
  EXPECT_LT(basis.largest_value, 65504);
  EXPECT_GE(basis.largest_value, 65504 / 4.1);  // no row of 16 sums to more than 4
  for (int64_t i = 0; i < 2 * 16; ++i) {
    double largest = 0;
    for (int64_t c = 0; c < 16; ++c) {
      const float a = basis.decode[i * 16 + c];
      largest += a * (std::copysign(basis.largest_value, a) - basis.mean[i / 16 * 16 + c]);
    }
    EXPECT_LE(largest, 65504);
  }
  for (float& x : layer.value.channels.mean) x = 1e6f;
  EXPECT_THROW(basis_of("pca16", &layer), std::invalid_argument);
}

TEST(ValueBasis, WhatIsMissingIsNamed) {
  const auto message = [](const char* codec, const LayerCalibration* layer) -> std::string {
    try {
      basis_of(codec, layer);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("pca8+int8", nullptr),
            "codec 'pca8+int8' needs a calibration: make one of this model with kvquant calibrate "
            "and name it with --calib");
  const LayerCalibration layer = fitted(5);
  EXPECT_EQ(message("pca5", &layer), "");
  EXPECT_EQ(message("pcaw6", &layer),
            "codec 'pcaw6+fp16': the calibration has bases of rank 5 only: calibrate with a --rank "
            "of at least 6");
}

TEST(ValueBasis, IdentityBasesKeepChannels) {
  const Calibration identity = identity_bases(kShape);
  ASSERT_EQ(identity.layers.size(), 1u);
  EXPECT_FALSE(identity.layers[0].has_codebooks());
  EXPECT_TRUE(fitted().has_codebooks());
  const ValueBasis basis = basis_of("pcaw16", &identity.layers[0]);
  for (int64_t i = 0; i < 2 * 16 * 16; ++i) {
    EXPECT_EQ(basis.decode[i], i / 16 % 16 == i % 16 ? 1 : 0);
  }
}

}  // namespace
}  // namespace kvquant
