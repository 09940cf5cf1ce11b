#include "model/presets.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/test_path.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";
constexpr const char* kTiny = KVQUANT_SOURCE_DIR "/tests/golden/tiny_yarn";

Preset embedded_preset(const char* spec) {
  Preset preset;
  preset.name = "test";
  preset.spec = spec;
  describe_preset(preset, preset_model(*open_checkpoint(kEmbedded)));
  return preset;
}

std::string refusal(const Preset& preset, const char* model) {
  try {
    check_preset_fits(preset, preset_model(*open_checkpoint(model)));
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

void expect_in(const std::string& part, const std::string& message) {
  EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected: " << part;
}

TEST(Presets, DescribeWhatASpecKeepsOfAModel) {
  const Preset preset = embedded_preset("v=pca48+int8");
  EXPECT_EQ(preset.model, "ref5m");
  EXPECT_EQ(preset.head_dim, 64);
  EXPECT_EQ(preset.num_layers, 6);
  EXPECT_EQ(preset.rank, 48);
  EXPECT_EQ(preset.bits, 8);
  EXPECT_EQ(to_string(preset.target), "v");
  // 48 codes of 8 bits, padded to 64, and a scale and a zero point, for 64 values.
  EXPECT_GT(preset.side_compression, 1.8);
  EXPECT_LT(preset.side_compression, 2.7);
  EXPECT_LT(preset.compression_ratio, preset.side_compression);  // keys count
  EXPECT_THROW(embedded_preset("v=pca65"), std::invalid_argument);
}

TEST(Presets, ASixteenthOfTheValuesIsAThirtiethOfTheCache) {
  // As of 128 dimensions 120: 2 · 128 / (128 + 120) = 1.03, not 1.07.
  const Preset preset = embedded_preset("v=pca56");
  EXPECT_NEAR(preset.side_compression, 64.0 / 56, 1e-12);
  EXPECT_NEAR(preset.compression_ratio, 2.0 * 64 / (64 + 56), 1e-12);
}

TEST(Presets, NamesOfRanksNeedNoFile) {
  const Preset preset = get_preset_info(kEmbedded, "r48-vonly-int8");
  EXPECT_EQ(preset.spec, "v=pca48+int8");
  EXPECT_EQ(preset.name, "r48-vonly-int8");
  EXPECT_EQ(preset.path, "");
  EXPECT_EQ(preset.ppl_delta, std::nullopt);
  EXPECT_THROW(get_preset_info(kEmbedded, "r65-vonly"), std::invalid_argument);
  EXPECT_THROW(get_preset_info(kEmbedded, "r0-vonly"), IoError);
  EXPECT_THROW(get_preset_info(kEmbedded, "no-such"), IoError);
  EXPECT_THROW(get_preset_info(kEmbedded, "no/such.json"), IoError);
  EXPECT_THROW(get_preset_info(kEmbedded, ""), IoError);
}

TEST(Presets, AFileIsFoundBeforeAName) {
  const std::string path = test::test_path("own.json");
  save_preset(embedded_preset("v=pca48+int8"), path);
  EXPECT_EQ(get_preset_info(kEmbedded, path).name, "test");
  std::filesystem::remove(path);
}

TEST(Presets, RefuseAnotherModelByName) {
  Preset preset = embedded_preset("nuq4");
  EXPECT_EQ(refusal(preset, kEmbedded), "accepted");
  expect_in("head_dim 64", refusal(preset, kTiny));
  expect_in("has 16", refusal(preset, kTiny));
  preset.num_layers = 7;
  expect_in("num_layers 7", refusal(preset, kEmbedded));
  preset = embedded_preset("nuq4");
  preset.model = "another";
  EXPECT_EQ(refusal(preset, kEmbedded), "accepted");  // the fingerprint knows it by any name
  preset.model_fingerprint = "";
  expect_in("\"another\", not for \"ref5m\"", refusal(preset, kEmbedded));
}

TEST(Presets, ThoseThatComeWithTheProgramLoad) {
  for (const Preset& preset : list_presets()) {
    EXPECT_TRUE(preset.ppl_delta.has_value()) << preset.path;
    EXPECT_TRUE(calibration_path(preset).empty() ||
                std::filesystem::exists(calibration_path(preset)))
        << preset.path;
  }
}

}  // namespace
}  // namespace kvquant
