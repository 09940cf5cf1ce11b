#include "quant/per_layer_keys.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <stdexcept>

#include "quant/calibration_test_data.h"

namespace kvquant {
namespace {

TEST(PerLayerKeys, AreTheCalibrationsOfThatCodec) {
  const Calibration calibration = test_calibration();  // 2 layers, 2 KV heads of 8
  for (const int bits : {2, 3, 4}) {
    const PerLayerKeys keys = per_layer_keys(calibration, "nuq" + std::to_string(bits) + "-1%");
    ASSERT_EQ(keys.codebooks.size(), 2u);
    ASSERT_EQ(keys.scales.size(), 2u);
    const size_t num_levels = size_t{1} << bits, width = static_cast<size_t>(bits - 2);
    for (size_t layer = 0; layer < 2; ++layer) {
      const KeyCalibration& key = calibration.layers[layer].key;
      ASSERT_EQ(kOutlierPercents[4], 1);
      EXPECT_EQ(keys.codebooks[layer].num_heads, 0);
      ASSERT_EQ(keys.codebooks[layer].levels.size(), num_levels);
      for (size_t i = 0; i < num_levels; ++i) {
        EXPECT_EQ(keys.codebooks[layer].levels[i], key.codebooks[width][4 * num_levels + i]);
      }
      EXPECT_EQ(keys.scales[layer].num_heads, 2);
      ASSERT_EQ(keys.scales[layer].scales.size(), 16u);
      for (size_t c = 0; c < 16; ++c) {
        EXPECT_EQ(keys.scales[layer].scales[c], to_float(key.scale[width][4 * 16 + c]));
      }
    }
  }
}

TEST(PerLayerKeys, OfPercentsBetweenAreInterpolated) {
  const Calibration calibration = test_calibration();
  const auto level = [&](const char* codec) {
    return per_layer_keys(calibration, codec).codebooks[1].levels[3];
  };
  EXPECT_FLOAT_EQ(level("nuq4-1.5%"), (level("nuq4-1%") + level("nuq4-2%")) / 2);
}

TEST(PerLayerKeys, HaveACodebookForEachHeadWhereTheCalibrationHas) {
  const Calibration calibration =
      test_calibration({2, 4, 2, 8}, {.codebooks = CodebookScope::kHead});
  const PerLayerKeys keys = per_layer_keys(calibration, "nuq3-1%");
  for (size_t layer = 0; layer < 2; ++layer) {
    const LayerCodebook& book = keys.codebooks[layer];
    EXPECT_EQ(book.num_heads, 2);
    EXPECT_EQ(book.num_levels, 8);
    ASSERT_EQ(book.levels.size(), 16u);
    for (size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(book.levels[i], calibration.layers[layer].key.codebooks[1][4 * 16 + i]);
    }
  }
}

TEST(PerLayerKeys, AreReadBackFromTheirFiles) {
  const std::string dir =
      (std::filesystem::path(testing::TempDir()) / "kvquant_per_layer_keys_test").string();
  for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
    const Calibration calibration = test_calibration({2, 4, 2, 8}, {.codebooks = scope});
    const PerLayerKeys keys = per_layer_keys(calibration, "nuq3");
    save_per_layer_codebooks(dir, keys.codebooks);
    save_per_layer_scaling_factors(dir, keys.scales);
    EXPECT_EQ(load_per_layer_codebooks(dir), keys.codebooks);
    EXPECT_EQ(load_per_layer_scaling_factors(dir), keys.scales);
    std::filesystem::remove_all(dir);
  }
}

TEST(PerLayerKeys, OfOtherCodecsAreRefused) {
  const Calibration calibration = test_calibration();
  for (const char* codec :
       {"", "fp16", "int4", "nuq5", "nuq3-6%", "had+nuq3", "k=nuq3", "nuq3,v=fp16", "nuq3-"}) {
    EXPECT_THROW(per_layer_keys(calibration, codec), std::invalid_argument) << codec;
  }
}

}  // namespace
}  // namespace kvquant
