#include "bench/sweep_quality.h"

#include <gtest/gtest.h>

#include "kvquant/error.h"

namespace kvquant {
namespace {

using Names = std::vector<std::string>;

std::optional<SweepQuality> quality_of(const std::string& quality) {
  return parse_quality(R"({"kv": ["fp16"], "quality": )" + quality + "}", "grids/g.json");
}

std::string error_of(const std::string& quality) {
  try {
    quality_of(quality);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST(SweepQuality, IsAskedForOrNot) {
  EXPECT_FALSE(parse_quality(R"({"kv": ["fp16"]})", "g.json").has_value());
  const auto least = quality_of("{}");
  ASSERT_TRUE(least.has_value());
  EXPECT_EQ(least->context, 0);
  EXPECT_TRUE(least->calibrations.empty());
  EXPECT_TRUE(least->sensitivity.empty());
}

TEST(SweepQuality, KeysOfACalibrationAreOptionsOfTheCommand) {
  const auto quality = quality_of(R"({"context": 512, "windows": 4, "file": "../a.txt",
      "calibrations": {"lloyd": {"codebook": "lloyd", "seq_len": 256},
                       "texts": {"data": ["../b.txt", "/c.txt"]}},
      "sensitivity": {"bits": 3.5, "codecs": ["nuq2-1%", "nuq4-1%"]}})");
  ASSERT_TRUE(quality.has_value());
  EXPECT_EQ(quality->context, 512);
  EXPECT_EQ(quality->windows, 4);
  EXPECT_EQ(quality->file, "a.txt");
  ASSERT_EQ(quality->calibrations.size(), 2u);
  EXPECT_EQ(quality->calibrations[0].name, "lloyd");
  EXPECT_EQ(quality->calibrations[0].arguments, (Names{"--codebook=lloyd", "--seq-len=256"}));
  EXPECT_EQ(quality->calibrations[1].arguments, (Names{"--data=b.txt", "--data=/c.txt"}));
  EXPECT_EQ(quality->sensitivity, (Names{"--bits=3.5", "--codecs=nuq2-1%", "--codecs=nuq4-1%"}));
}

TEST(SweepQuality, MistakesAreNamedByTheirPath) {
  EXPECT_EQ(error_of("3"), "grids/g.json: quality is 3, not an object");
  EXPECT_EQ(error_of(R"({"windows": 0})"),
            "grids/g.json: quality.windows is 0, not a whole number of at least 1");
  EXPECT_EQ(error_of(R"({"file": 1})"), "grids/g.json: quality.file is 1, not a file in quotes");
  EXPECT_NE(error_of(R"({"text": "a"})").find("quality: unknown key \"text\": there are file, "),
            std::string::npos);
  EXPECT_EQ(error_of(R"({"calibrations": ["a"]})"),
            "grids/g.json: quality.calibrations is [\"a\"], not an object");
  EXPECT_NE(error_of(R"({"calibrations": {"a/b": {}}})").find("\"a/b\" is no name"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"calibrations": {"a": {"output": "b"}}})")
                .find("quality.calibrations.a: unknown key \"output\""),
            std::string::npos);
  EXPECT_EQ(error_of(R"({"calibrations": {"a": {"data": [true]}}})"),
            "grids/g.json: quality.calibrations.a.data is true, neither text nor a number");
  EXPECT_NE(error_of(R"({"sensitivity": {"bit": 3}})").find("quality.sensitivity: unknown key"),
            std::string::npos);
}

}  // namespace
}  // namespace kvquant
