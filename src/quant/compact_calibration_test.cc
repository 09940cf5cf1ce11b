#include "quant/compact_calibration.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/test_path.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "quant/calibration_test_data.h"
#include "quant/codec_parameters.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{3, 4, 2, 16};

std::string file_of(const Calibration& calibration) {
  const std::string path = test::test_path("file");
  save_calibration(calibration, path);
  std::string bytes = read_text(path);
  std::filesystem::remove(path);
  return bytes;
}

Calibration parse(const std::string& bytes) {
  return parse_calibration(std::as_bytes(std::span(bytes.data(), bytes.size())), "some.file");
}

const char* const kSpecs[] = {"nuq4-1%",
                              "k=nuq3-0.7%,v=had+nuq3",
                              "k=int8,v=pca3+int4",
                              "v=pcaw4",
                              "k=nuq2,v=nuq2,layers=1:nuq4-1%",
                              "v=pca4+had+int8",
                              "fp16",
                              "k=int4,layers=0-1:v=pca2",
                              "k=pca3",
                              "k=pca4+wf4,v=pcaw4+wf8",
                              "v=pca4+wf2",
                              "k=pca4+had+int8,v=pcaw2,layers=1:k=lnns+int4"};

TEST(CompactCalibration, ComesBackFromItsFileWithAllBits) {
  for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
    const Calibration whole = test_calibration(kShape, {.codebooks = scope});
    for (const char* spec : kSpecs) {
      SCOPED_TRACE(spec);
      const Calibration compact = compact_calibration(whole, parse_spec(spec));
      const std::string bytes = file_of(compact);
      EXPECT_LT(bytes.size(), file_of(whole).size() / 2);
      const Calibration in = parse(bytes);
      EXPECT_EQ(calibration_hash(in), calibration_hash(compact));
      EXPECT_EQ(in.info.holds, resolved(parse_spec(spec)));
      EXPECT_EQ(in.info.codebooks, scope);
      EXPECT_EQ(file_of(in), bytes);
    }
  }
}

TEST(CompactCalibration, HasTheRangesBooksAndFeedbackOfTheRoundedWhole) {
  Calibration whole = test_calibration(kShape);
  round_calibration(whole);
  const Calibration compact = parse(file_of(compact_calibration(whole, parse_spec("nuq3-0.7%"))));
  for (size_t i = 0; i < 3; ++i) {
    const KeyCalibration &a = compact.layers[i].key, &b = whole.layers[i].key;
    EXPECT_EQ(nuq_key_ranges(a, 3, 0.7), nuq_key_ranges(b, 3, 0.7));
    EXPECT_EQ(calibrated_levels(a.codebooks[1], 0.7), calibrated_levels(b.codebooks[1], 0.7));
    EXPECT_EQ(a.feedback, b.feedback);
    EXPECT_EQ(a.order, b.order);
    EXPECT_TRUE(a.scale[2].empty());
    EXPECT_TRUE(compact.layers[i].value.basis.empty());
    EXPECT_TRUE(compact.layers[i].has_codebooks());
  }
}

TEST(CompactCalibration, CutsBasesToTheirRank) {
  Calibration whole = test_calibration(kShape);
  round_calibration(whole);
  const Calibration compact = compact_calibration(whole, parse_spec("v=pca3"));
  EXPECT_EQ(compact.info.rank, 3);
  const auto &cut = compact.layers[1].value.basis, &full = whole.layers[1].value.basis;
  ASSERT_EQ(cut.size(), 2u * 3 * 16);
  EXPECT_TRUE(std::equal(cut.begin(), cut.begin() + 48, full.begin()));
  EXPECT_TRUE(std::equal(cut.begin() + 48, cut.end(), full.begin() + 5 * 16));
  EXPECT_THROW(compact_calibration(whole, parse_spec("v=pca6")), std::invalid_argument);
}

TEST(CompactCalibration, OfKeysThatAreLatentsHasTheirBasisAndMean) {
  const Calibration whole = test_calibration(kShape);
  const Calibration compact = parse(file_of(compact_calibration(whole, parse_spec("k=pca3+int8"))));
  const KeyCalibration &key = compact.layers[1].key, &full = whole.layers[1].key;
  EXPECT_EQ(compact.info.rank, 3);
  EXPECT_EQ(key.rotated_mean, full.rotated_mean);
  ASSERT_EQ(key.basis.size(), 2u * 3 * 16);
  EXPECT_TRUE(std::equal(key.basis.begin() + 48, key.basis.end(), full.basis.begin() + 5 * 16));
  EXPECT_TRUE(key.gram.empty() && key.feedback.empty() && key.scale[2].empty());
  EXPECT_TRUE(compact.layers[1].query.gram.empty());
}

TEST(CompactCalibration, IsRefusedForOtherSpecsByName) {
  Calibration compact = compact_calibration(test_calibration(kShape), parse_spec("k=nuq4-1%"));
  compact.path = "small.safetensors";
  const auto refusal = [&](const char* spec) -> std::string {
    try {
      check_calibration_holds(compact, parse_spec(spec));
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal("k=nuq4-1%,sink=4"), "accepted");
  EXPECT_EQ(refusal("fp16"), "accepted");
  EXPECT_EQ(refusal("k=nuq4-1%,v=had+nuq2"), "accepted");  // codebooks are all there
  for (const char* spec :
       {"k=nuq4-0.5%", "k=nuq3-1%", "k=int8", "k=pca4", "v=pca4", "fp16,layers=2:nuq2"}) {
    EXPECT_NE(refusal(spec).find("small.safetensors holds only what k=nuq4-1%"), std::string::npos)
        << refusal(spec);
  }
  EXPECT_THROW(compact_calibration(compact, parse_spec("k=nuq2")), std::invalid_argument);
}

TEST(CompactCalibration, KnowsWhichSpecsReadOne) {
  for (const char* spec :
       {"k=int8", "v=nuq4", "v=had+nuq2", "v=pca8", "k=pca8+int8", "fp16,layers=1:nuq2"}) {
    EXPECT_TRUE(reads_calibration(parse_spec(spec), 2)) << spec;
  }
  for (const char* spec : {"fp16", "bf16", "v=int8", "v=lnns+int4", "v=had+int4", "k=lnns"}) {
    EXPECT_FALSE(reads_calibration(parse_spec(spec), 2)) << spec;
  }
}

TEST(CompactCalibration, RefusesAFileThatLacksWhatItSaysItHolds) {
  const std::string bytes =
      file_of(compact_calibration(test_calibration(kShape), parse_spec("nuq4")));
  const auto edited = [&](const std::string& from, const std::string& to) -> std::string {
    std::string copy = bytes;
    const size_t at = copy.find(from);
    EXPECT_NE(at, std::string::npos);
    copy.replace(at, from.size(), to);
    try {
      parse(copy);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_NE(edited("k=nuq4", "k=nuq3").find("scale3\" is missing"), std::string::npos);
  EXPECT_NE(edited("k=nuq4", "k=nuq5").find("holds: spec"), std::string::npos);
  EXPECT_NE(edited("\"format_version\":\"3\"", "\"format_version\":\"4\"").find("format_version"),
            std::string::npos);
}

TEST(CompactCalibration, PacksTriangles) {
  const std::vector<float> matrices = {0, 0, 0, 1, 0, 0, 2, 3, 0, 0, 0, 0, 4, 0, 0, 5, 6, 0};
  const auto packed = pack_triangles(matrices, 3);
  ASSERT_EQ(packed.size(), 6u);
  EXPECT_EQ(to_float(packed[3]), 4);
  EXPECT_EQ(unpack_triangles(packed, 3), matrices);
}

}  // namespace
}  // namespace kvquant
