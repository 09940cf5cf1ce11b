#include "model/rope_json.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/golden_test_models.h"

namespace kvquant {
namespace {

RopeConfig read(const Json& config) { return rope_from_json(config, 4096, "config.json"); }

void expect_refused(const Json& config, const std::string& part) {
  try {
    read(config);
    ADD_FAILURE() << "accepted: " << config;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(RopeJson, FrequenciesAreThoseOfTransformers) {
  const Json golden = Json::parse(read_text(test::golden_path("rope.json")));
  ASSERT_EQ(golden.at("cases").size(), 12u);
  for (const Json& item : golden.at("cases")) {
    SCOPED_TRACE(item.at("config").dump());
    const auto head_dim = item.at("config").at("head_dim").get<int64_t>();
    const RopeConfig rope = read(item.at("config"));
    const auto expected = item.at("frequencies").get<std::vector<double>>();
    const auto actual =
        rope_frequencies(head_dim, rope.theta, rope.scaling, item.at("length").get<int64_t>());
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t c = 0; c < actual.size(); ++c) {
      EXPECT_NEAR(actual[c], expected[c], 5e-6 * expected[c]) << "pair " << c;  // theirs are f32
    }
    EXPECT_NEAR(rope.scaling.attention_factor, item.at("attention_factor").get<double>(), 1e-12);
  }
}

TEST(RopeJson, NothingIsScaledByDefault) {
  EXPECT_EQ(read(Json::object()).theta, 10000);
  EXPECT_EQ(read(Json::object()).scaling, RopeScaling{});
  EXPECT_EQ(read({{"rope_scaling", nullptr}, {"rope_theta", 500.0}}).theta, 500);
  const Json section = {
      {"rope_type", "default"}, {"rope_theta", 7.0}, {"partial_rotary_factor", 1.0}};
  EXPECT_EQ(read({{"rope_parameters", section}}).theta, 7);
  EXPECT_EQ(read({{"rope_parameters", section}}).scaling, RopeScaling{});
}

TEST(RopeJson, TheOriginalContextIsLookedForWhereTransformersLooks) {
  Json config = {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}, {"truncate", nullptr}}}};
  EXPECT_EQ(read(config).scaling.original_context, 4096);
  config["rope_scaling"]["original_max_position_embeddings"] = 1024;
  EXPECT_EQ(read(config).scaling.original_context, 1024);
  config["original_max_position_embeddings"] = 512;
  EXPECT_EQ(read(config).scaling.original_context, 512);
  config["rope_scaling"]["factor"] = nullptr;
  EXPECT_EQ(read(config).scaling.factor, 8);
}

TEST(RopeJson, BothSectionsMaySayTheSame) {
  const Json linear = {{"type", "linear"}, {"factor", 2.0}};
  const Json parameters = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 30.0}};
  const RopeConfig rope = read({{"rope_scaling", linear}, {"rope_parameters", parameters}});
  EXPECT_EQ(rope.theta, 30);
  EXPECT_EQ(rope.scaling.factor, 2);
  expect_refused(
      {{"rope_scaling", {{"type", "linear"}, {"factor", 3.0}}}, {"rope_parameters", parameters}},
      "differ");
}

TEST(RopeJson, WhatIsNotSupportedIsRefusedByName) {
  for (const char* type : {"longrope", "su", "mrope", "proportional", "ntk"}) {
    expect_refused({{"rope_scaling", {{"rope_type", type}}}}, std::string("\"") + type + "\"");
  }
  expect_refused({{"rope_scaling", {{"rope_type", "yarn"}, {"type", "linear"}}}}, "types");
  expect_refused({{"rope_scaling", 2}}, "rope_scaling is neither null nor an object");
  expect_refused({{"rope_scaling", {{"factor", 2.0}}}}, "\"factor\" is not supported");
  for (const char* type : {"linear", "dynamic", "llama3", "yarn"}) {
    expect_refused({{"rope_scaling", {{"type", type}}}}, "without factor");
    expect_refused({{"rope_scaling", {{"type", type}, {"factor", "2"}}}}, "factor is string");
    expect_refused({{"rope_scaling", {{"type", type}, {"factor", 2.0}, {"alpha", 1.0}}}},
                   "\"alpha\" is not supported");
  }
  expect_refused({{"rope_scaling", {{"type", "llama3"}, {"factor", 2.0}}}},
                 "without low_freq_factor");
  expect_refused({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}},
                 "partial_rotary_factor");
  expect_refused({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
                 "full_attention");
}

}  // namespace
}  // namespace kvquant
