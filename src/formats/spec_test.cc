#include "kvquant/spec.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdlib>
#include <stdexcept>

namespace kvquant {
namespace {

std::string error_of(std::string_view text) {
  try {
    parse_spec(text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

void expect_error(std::string_view text, int position, std::string_view expected) {
  const std::string message = error_of(text);
  EXPECT_NE(message.find("position " + std::to_string(position) + ":"), std::string::npos)
      << text << " -> " << message;
  EXPECT_NE(message.find(expected), std::string::npos) << text << " -> " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(Spec, ACodecWithoutSideSetsBothSides) {
  const CacheSpec spec = parse_spec("nuq3-1%");
  EXPECT_EQ(spec.key.quantizer, Quantizer::kNuq3);
  EXPECT_EQ(spec.key.outlier_percent, 1);
  EXPECT_EQ(spec.key, spec.value);
  EXPECT_EQ(spec.block, 256);
  EXPECT_FALSE(spec.sink || spec.recent);
  EXPECT_EQ(spec.text, "nuq3-1%");
}

TEST(Spec, AnUnnamedSideIsFp16) {
  EXPECT_EQ(resolved(parse_spec("v=nuq4")), "k=fp16,v=nuq4,sink=0,recent=0,block=256");
  EXPECT_EQ(resolved(parse_spec("k=nuq2-0.5%")), "k=nuq2-0.5%,v=fp16,sink=0,recent=0,block=256");
  EXPECT_EQ(resolved(parse_spec("sink=4")), "k=fp16,v=fp16,sink=4,recent=0,block=256");
}

TEST(Spec, TheExamplesOfTheGrammarResolve) {
  const std::pair<const char*, const char*> examples[] = {
      {"fp16", "k=fp16,v=fp16,sink=0,recent=0,block=256"},
      {"nuq3-1%", "k=nuq3-1%,v=nuq3-1%,sink=0,recent=0,block=256"},
      {"k=nuq4-0.5%,v=nuq3,sink=4,recent=64", "k=nuq4-0.5%,v=nuq3,sink=4,recent=64,block=256"},
      {"k=fp16,v=pca96+int8", "k=fp16,v=pca96+int8,sink=0,recent=0,block=256"},
      {"nuq3-1%,layers=0-1:fp16,block=256",
       "k=nuq3-1%,v=nuq3-1%,sink=0,recent=0,block=256,layers=0-1:fp16"},
      {"v=pcaw32", "k=fp16,v=pcaw32+fp16,sink=0,recent=0,block=256"},
      {"v=lnns+had+wf2.5", "k=fp16,v=lnns+had+wf2.5,sink=0,recent=0,block=256"},
  };
  for (const auto& [text, canonical] : examples) {
    EXPECT_EQ(resolved(parse_spec(text)), canonical);
    EXPECT_EQ(resolved(parse_spec(canonical)), canonical);
  }
}

TEST(Spec, LaterItemsBeatEarlierOnes) {
  EXPECT_EQ(resolved(parse_spec("k=nuq4,int8,v=nuq2,block=64,block=128,sink=1,sink=2")),
            "k=int8,v=nuq2,sink=2,recent=0,block=128");
}

TEST(Spec, LayersBeatPlainItemsWhereverTheyStand) {
  const CacheSpec spec = parse_spec("layers=1-2:k=fp16,nuq4,layers=2:nuq2,k=nuq3");
  EXPECT_EQ(spec.key_of(0).quantizer, Quantizer::kNuq3);
  EXPECT_EQ(spec.key_of(1).quantizer, Quantizer::kF16);
  EXPECT_EQ(spec.key_of(2).quantizer, Quantizer::kNuq2);
  EXPECT_EQ(spec.value_of(1).quantizer, Quantizer::kNuq4);  // the unnamed side keeps the plain one
  EXPECT_EQ(spec.value_of(2).quantizer, Quantizer::kNuq2);
  EXPECT_EQ(spec.value_of(3).quantizer, Quantizer::kNuq4);
}

TEST(Spec, ErrorsNameThePositionAndWhatWasExpected) {
  expect_error("", 1, "a codec");
  expect_error("nuq5", 1, "a codec");
  expect_error("nuq3,", 6, "a codec");
  expect_error("nuq3 ,v=fp16", 5, "\",\" or the end");
  expect_error("nuq3-1", 7, "\"%\"");
  expect_error("nuq3-0%", 6, "above 0");
  expect_error("nuq3-5.1%", 6, "up to 5");
  expect_error("nuq3-.5%", 6, "a percentage");
  expect_error("nuq3-1.0000001%", 6, "6 decimals");
  expect_error("nuq3-1e1%", 7, "\"%\"");
  expect_error("int8-1%", 5, "\",\" or the end");
  expect_error("fp16+had", 5, "\",\" or the end");
  expect_error("k=", 3, "a codec");
  expect_error("k=v=fp16", 3, "a codec");
  expect_error("v=pca+int8", 6, "a rank");
  expect_error("v=pca0", 6, "a rank");
  expect_error("v=had+", 7, "a transform or a quantizer");
  expect_error("v=had+pca8", 11, "a quantizer");
  expect_error("v=pca8+wf", 10, "bits");
  expect_error("v=pca8+wf9", 10, "up to 8");
  expect_error("sink=", 6, "a number of tokens");
  expect_error("sink=-1", 6, "a number of tokens");
  expect_error("recent=99999999999999999999", 8, "a number of tokens");
  expect_error("block=100", 7, "a multiple of 64");
  expect_error("block=0", 7, "a multiple of 64");
  expect_error("block=1088", 7, "64 to 1024");
  expect_error("layers=3", 9, "\":\"");
  expect_error("layers=3-2:fp16", 10, "a layer");
  expect_error("layers=0:sink=4", 10, "a codec");
  expect_error("nuq3\n,x", 5, "?");
  EXPECT_NE(error_of(std::string(70000, 'x')).find("longer"), std::string::npos);
}

TEST(Spec, ASpecThatDoesNotFitTheModelIsRefused) {
  EXPECT_NO_THROW(check_spec_fits(parse_spec("v=pca64+int8,layers=0-29:had+nuq4"), 30, 64));
  EXPECT_THROW(check_spec_fits(parse_spec("v=pca65"), 30, 64), std::invalid_argument);
  EXPECT_THROW(check_spec_fits(parse_spec("v=pca32+pca33+fp16"), 30, 64), std::invalid_argument);
  EXPECT_THROW(check_spec_fits(parse_spec("v=lnns+pca64+fp16"), 30, 64), std::invalid_argument);
  EXPECT_THROW(check_spec_fits(parse_spec("v=had"), 30, 80), std::invalid_argument);
  EXPECT_THROW(check_spec_fits(parse_spec("nuq3,layers=29-30:fp16"), 30, 64),
               std::invalid_argument);
  EXPECT_THROW(check_spec_fits(parse_spec("v=wf3"), 30, 64), std::invalid_argument);
  EXPECT_NO_THROW(check_spec_fits(parse_spec("v=pcaw16+wf3"), 30, 64));
}

TEST(Spec, KeyTransformsWarn) {
  EXPECT_TRUE(spec_warnings(parse_spec("k=nuq3,v=pca16+int8")).empty());
  const auto warnings = spec_warnings(parse_spec("k=pca16,layers=1:k=had+int4,layers=2:k=pca16"));
  ASSERT_EQ(warnings.size(), 2u);  // each once
  EXPECT_EQ(warnings[0].rfind("k=pca16+fp16:", 0), 0u);
}

TEST(Spec, CodecsWithoutEffectWarn) {
  for (const char* text : {"fp16", "k=nuq4,v=nuq3", "nuq4,k=nuq3", "nuq4,layers=0:fp16",
                           "k=nuq4,layers=0-1:v=fp16,sink=4,sink=5"}) {
    EXPECT_TRUE(spec_warnings(parse_spec(text)).empty()) << text;
  }
  const auto warnings = spec_warnings(parse_spec("fp16,nuq3-1%"));
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0].rfind("spec \"fp16,nuq3-1%\": fp16 has no effect", 0), 0u) << warnings[0];
  EXPECT_EQ(spec_warnings(parse_spec("k=int8,nuq4,v=nuq3,k=int4")).size(), 2u);
}

TEST(Spec, OnlyBuiltCodecsPass) {
  for (const char* text : {"fp16",
                           "k=bf16,v=nuq2",
                           "nuq4-1%,layers=0:nuq3-5%",
                           "int8",
                           "int4",
                           "k=int4,v=had+nuq4",
                           "v=had+nuq3-1%",
                           "nuq4,layers=1:v=had+int8",
                           "v=pca8",
                           "k=int8,v=pca8+nuq4",
                           "v=pcaw16+had+int4",
                           "v=lnns+nuq2-1%",
                           "v=lnns+had+nuq4",
                           "nuq4,layers=3:v=lnns",
                           "k=pca8",
                           "k=pca8+int8,v=nuq4",
                           "pca8+had+nuq3-1%",
                           "nuq4,layers=3:k=lnns",
                           "pca8+wf4",
                           "v=pcaw8+wf2.5"}) {
    EXPECT_NO_THROW(check_spec_built(parse_spec(text))) << text;
  }
  for (const char* text :
       {"had+nuq4", "k=had+int8", "v=had", "v=had+bf16", "v=had+fp32", "v=had+had+nuq4",
        "v=pca8+bf16", "v=pca8+fp32", "v=pca8+pca4", "v=had+pca8", "v=lnns+pca8", "v=pca8+had+wf4",
        "v=lnns+wf4", "k=pcaw8+int8", "k=pca8+bf16", "k=pcaw8+wf4", "v=lnns+had+had+int4",
        "nuq4,layers=3:k=had+int4"}) {
    EXPECT_THROW(check_spec_built(parse_spec(text)), std::invalid_argument) << text;
  }
  try {
    check_spec_built(parse_spec("k=had+int8"));
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what())
                  .rfind("codec 'had+int8' is not built yet for keys; built: "
                         "fp32, ",
                         0),
              0u);
  }
}

TEST(Spec, OnlyFp16AndBf16WithoutTransformsAreUncompressed) {
  EXPECT_FALSE(is_compressed(parse_spec("fp16").key));
  EXPECT_FALSE(is_compressed(parse_spec("bf16").key));
  EXPECT_TRUE(is_compressed(parse_spec("lnns").key));
  EXPECT_TRUE(is_compressed(parse_spec("int8").key));
}

Codec generate_codec() {
  Codec codec;
  const int num_transforms = *rc::gen::inRange(0, 3);
  for (int i = 0; i < num_transforms; ++i) {
    const auto kind = *rc::gen::element(Transform::kPca, Transform::kPcaWeighted,
                                        Transform::kLnNullspace, Transform::kHadamard);
    const bool has_rank = kind == Transform::kPca || kind == Transform::kPcaWeighted;
    codec.transforms.push_back({kind, has_rank ? *rc::gen::inRange(1, 300) : 0});
  }
  codec.quantizer = *rc::gen::element(Quantizer::kF32, Quantizer::kF16, Quantizer::kBF16,
                                      Quantizer::kInt8, Quantizer::kInt4, Quantizer::kNuq4,
                                      Quantizer::kNuq3, Quantizer::kNuq2, Quantizer::kWaterfill);
  const double share = *rc::gen::inRange(1, 5'000'001) / 1e6;
  if (codec.quantizer == Quantizer::kWaterfill) codec.waterfill_bits = share;
  const bool is_nuq = codec.quantizer == Quantizer::kNuq4 || codec.quantizer == Quantizer::kNuq3 ||
                      codec.quantizer == Quantizer::kNuq2;
  if (is_nuq && *rc::gen::inRange(0, 2) == 1) codec.outlier_percent = share;
  return codec;
}

TEST(Spec, ResolvedFormParsesToTheSameSpec) {
  setenv("RC_PARAMS", "seed=42", /*overwrite=*/0);
  EXPECT_TRUE(rc::check([] {
    CacheSpec spec;
    spec.key = generate_codec();
    spec.value = generate_codec();
    spec.sink = *rc::gen::inRange(0, 100);
    spec.recent = *rc::gen::inRange(0, 1'000'000'001);
    spec.block = 64 * *rc::gen::inRange(1, 17);
    const int num_overrides = *rc::gen::inRange(0, 4);
    for (int i = 0; i < num_overrides; ++i) {
      LayerOverride item;
      item.first = *rc::gen::inRange(0, 50);
      item.last = item.first + *rc::gen::inRange(0, 50);
      const int sides = *rc::gen::inRange(0, 3);  // both, key, value
      if (sides != 2) item.key = generate_codec();
      if (sides == 0) item.value = item.key;
      if (sides == 2) item.value = generate_codec();
      spec.overrides.push_back(item);
    }
    const CacheSpec back = parse_spec(resolved(spec));
    RC_ASSERT(back.key == spec.key);
    RC_ASSERT(back.value == spec.value);
    RC_ASSERT(back.overrides == spec.overrides);
    RC_ASSERT(back.sink == spec.sink);
    RC_ASSERT(back.recent == spec.recent);
    RC_ASSERT(back.block == spec.block);
    RC_ASSERT(resolved(back) == resolved(spec));
  }));
}

}  // namespace
}  // namespace kvquant
