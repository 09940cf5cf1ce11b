#include "quant/scaling_calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "quant/codec_parameters.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{2, 0, 1, 3};

std::vector<LayerScalingFactors> factors() {
  return {{1, 3, {1, 0.5f, 0}}, {1, 3, {2, 65504, 0.3f}}};
}

Calibration made(const char* spec = "nuq3-1%") {
  return scaling_calibration(factors(), kShape, parse_spec(spec));
}

TEST(ScalingCalibration, HasTheFactorsAsRangesAroundZero) {
  const Calibration calibration = made();
  ASSERT_EQ(calibration.layers.size(), 2u);
  EXPECT_EQ(calibration.info.shape, kShape);
  for (size_t layer = 0; layer < 2; ++layer) {
    const KeyCalibration& key = calibration.layers[layer].key;
    const std::vector<float> expected = factors()[layer].scales;
    for (const double percent : {0.0, 0.7, 1.0, 5.0}) {
      for (const int bits : {2, 3, 4}) {
        const auto ranges = nuq_key_ranges(key, bits, percent);
        for (size_t c = 0; c < 3; ++c) {
          const float factor = round_to_half(expected[c]);
          EXPECT_EQ(to_float(ranges[c]), factor);
          EXPECT_EQ(to_float(ranges[3 + c]), 0);
          EXPECT_EQ(to_float(ranges[6 + c]), -factor);
          EXPECT_EQ(to_float(ranges[9 + c]), factor);
        }
      }
    }
    for (const int bits : {4, 8}) {
      const auto ranges = uniform_key_ranges(key, bits);
      for (size_t c = 0; c < 3; ++c) {
        EXPECT_EQ(to_float(ranges[c]), round_to_half(expected[c]));
        EXPECT_EQ(to_float(ranges[3 + c]), 0);
      }
    }
  }
}

TEST(ScalingCalibration, HasTheHeuristicCodebooks) {
  const Calibration calibration = made();
  for (const LayerCalibration& layer : calibration.layers) {
    EXPECT_TRUE(layer.has_codebooks());
    for (const int bits : {2, 3, 4}) {
      const auto levels = get_cached_codebook("nuq" + std::to_string(bits));
      const auto i = static_cast<size_t>(bits - 2);
      for (const double percent : {0.0, 0.7, 5.0}) {
        EXPECT_EQ(calibrated_levels(layer.key.codebooks[i], percent), levels);
        EXPECT_EQ(calibrated_levels(layer.value.codebooks[i], percent), levels);
        EXPECT_EQ(calibrated_levels(layer.value.hadamard_codebooks[i], percent), levels);
      }
    }
  }
}

TEST(ScalingCalibration, RefusesFactorsOfOtherShapes) {
  const CacheSpec spec = parse_spec("nuq3");
  auto layers = factors();
  layers[1] = {3, 1, {1, 1, 1}};
  EXPECT_THROW(scaling_calibration(layers, kShape, spec), std::invalid_argument);
  layers[1] = {1, 3, {1, 1}};
  EXPECT_THROW(scaling_calibration(layers, kShape, spec), std::invalid_argument);
  layers.pop_back();
  EXPECT_THROW(scaling_calibration(layers, kShape, spec), std::invalid_argument);
}

TEST(ScalingCalibration, RefusesFactorsThatAreNoScales) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float wrong : {-1.0f, -infinity, infinity, 65536.0f, std::nanf("")}) {
    auto layers = factors();
    layers[1].scales[2] = wrong;
    EXPECT_THROW(scaling_calibration(layers, kShape, parse_spec("nuq3")), std::invalid_argument)
        << wrong;
  }
}

TEST(ScalingCalibration, RefusesSpecsThatWouldNotReadThem) {
  for (const char* spec : {"fp16", "k=fp16,v=nuq3", "k=nuq3,v=pca2", "k=pca2,v=nuq3"}) {
    EXPECT_THROW(made(spec), std::invalid_argument) << spec;
  }
  for (const char* spec : {"int8", "k=nuq4,v=fp16", "k=fp16,v=nuq3,layers=1:k=nuq2"}) {
    EXPECT_NO_THROW(made(spec)) << spec;
  }
}

}  // namespace
}  // namespace kvquant
