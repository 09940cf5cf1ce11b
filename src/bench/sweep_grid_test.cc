#include "bench/sweep_grid.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "kvquant/error.h"

namespace kvquant {
namespace {

std::vector<std::string> names_of(const std::string& text) {
  std::vector<std::string> names;
  for (const SweepPoint& point : parse_grid(text, "g.json")) names.push_back(point_name(point));
  return names;
}

std::string error_of(const std::string& text) {
  try {
    parse_grid(text, "g.json");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST(SweepGrid, IsEveryCombinationOnce) {
  EXPECT_EQ(names_of(R"({"prompt": [512, 64], "batch": [1, "max"], "kv": ["fp16", "nuq3-1%"]})"),
            (std::vector<std::string>{"len512_batch1_fp16", "len512_batch1_nuq3-1%",
                                      "len512_batchmax_fp16", "len512_batchmax_nuq3-1%",
                                      "len64_batch1_fp16", "len64_batch1_nuq3-1%",
                                      "len64_batchmax_fp16", "len64_batchmax_nuq3-1%"}));
  EXPECT_EQ(names_of(R"({"prompt": 8, "batch": [2, 2], "kv": "fp16", "gen": [0, 32]})"),
            (std::vector<std::string>{"len8_batch2_gen0_fp16", "len8_batch2_fp16"}));
}

TEST(SweepGrid, BlocksSinksAndWindowsBecomeItemsOfTheSpec) {
  const auto points = parse_grid(R"({"description": "blocks", "prompt": 8, "batch": 1,
                                     "kv": "nuq4", "block": [64, 128], "recent": 32})",
                                 "g.json");
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[1].spec.text, "nuq4,block=128,recent=32");
  EXPECT_EQ(points[1].spec.block, 128);
  EXPECT_EQ(points[1].spec.recent, 32);
}

TEST(SweepGrid, MistakesAreNamedByTheirPath) {
  const std::string rest = R"(, "batch": [1], "kv": ["fp16"]})";
  EXPECT_EQ(error_of(R"({"prompt": [512, 0])" + rest),
            "g.json: prompt[1] is 0, not a whole number of at least 1");
  EXPECT_EQ(error_of(R"({"prompt": "long")" + rest),
            "g.json: prompt is \"long\", not a whole number of at least 1");
  EXPECT_EQ(error_of(R"({"prompt": [])" + rest), "g.json: prompt is an empty list");
  EXPECT_EQ(error_of(R"({"prompt": [1.5])" + rest),
            "g.json: prompt[0] is 1.5, not a whole number of at least 1");
  EXPECT_EQ(error_of(R"({"batch": [1], "kv": ["fp16"]})"), "g.json: prompt is missing");
  EXPECT_NE(error_of(R"({"prompts": [1])" + rest).find("unknown key \"prompts\""),
            std::string::npos);
  EXPECT_EQ(error_of(R"({"prompt": [1], "batch": ["all"], "kv": ["fp16"]})"),
            "g.json: batch[0] is \"all\", not a whole number of at least 1, nor \"max\"");
  EXPECT_EQ(error_of(R"({"prompt": [1], "batch": [1], "kv": ["fp16", 3]})"),
            "g.json: kv[1] is 3, not a cache spec in quotes");
  EXPECT_NE(error_of(R"({"prompt": [1], "batch": [1], "kv": ["nuq9"]})").find("g.json: kv[0]: "),
            std::string::npos);
  EXPECT_NE(error_of(R"({"prompt": [1], "batch": [1], "kv": ["fp16"], "block": 65})").find("65"),
            std::string::npos);
  EXPECT_NE(error_of("[1]").find("g.json"), std::string::npos);
  EXPECT_NE(error_of("{").find("g.json"), std::string::npos);
}

TEST(SweepGrid, NamesAreReadBack) {
  for (const char* name :
       {"len16384_batch16_nuq3-1%", "len1_batchmax_fp16", "len512_batch4_gen64_nuq4,block=128",
        "len512_batch4_gen0_k=nuq4-0.5%,v=nuq3,sink=4,recent=64"}) {
    EXPECT_EQ(point_name(parse_point_name(name)), name);
  }
  EXPECT_EQ(parse_point_name("len8_batchmax_fp16").batch, 0);
  EXPECT_EQ(parse_point_name("len8_batch2_fp16").gen, kDefaultGen);
  for (const char* wrong :
       {"", "fp16", "len8_fp16", "batch1_fp16", "len0_batch1_fp16", "len8_batch0_fp16",
        "len8_batch1_", "len8_batch1_nuq9", "len-8_batch1_fp16", "len8_batch1_beam4_fp16",
        "len99999999999999999999_batch1_fp16"}) {
    EXPECT_THROW(parse_point_name(wrong), std::invalid_argument) << wrong;
  }
}

TEST(SweepGrid, TheQuickOneIsSmall) {
  EXPECT_LE(quick_grid().size(), 16u);
  for (const SweepPoint& point : quick_grid()) EXPECT_LE(point.prompt, 512);
}

}  // namespace
}  // namespace kvquant
