// Attention that reads codes gives the next-token distributions of the plain path, through all
// layers of the embedded model.
#include "fused_path.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace kvquant {
namespace {

constexpr size_t kNumTokens = 150;  // two tiles and a part

class FusedPath : public testing::Test {
 protected:
  test::PathDifference compare(const char* spec, Precision precision,
                               const test::PathOptions& options = {}) {
    Model model = Model::load(KVQUANT_SOURCE_DIR "/assets/ref5m", {.precision = precision});
    auto text = model.tokenizer().encode(read_text(KVQUANT_SOURCE_DIR "/assets/sample.txt"),
                                         Tokenizer::Special::kAsText);
    text.resize(kNumTokens);
    return test::compare_paths(model, text, parse_spec(spec), options);
  }
};

class FusedPathOfSpec : public FusedPath, public testing::WithParamInterface<const char*> {};

// In f32 every backend but the reference is the Highway kernel.
TEST_P(FusedPathOfSpec, HasTheDistributionsOfThePlainPath) {
  const auto difference = compare(GetParam(), Precision::kF32);
  EXPECT_TRUE(difference.reads_codes);
  EXPECT_GT(difference.compressed_tokens, 64);
  EXPECT_LT(difference.mean_kl, 1e-7);  // 2e-8 on Zen 4
}

INSTANTIATE_TEST_SUITE_P(Specs, FusedPathOfSpec,
                         testing::Values("nuq4-1%", "nuq3-1%,sink=4,recent=64", "nuq2",
                                         "k=nuq4-1%,v=had+nuq4,sink=1", "int8,recent=16"),
                         [](const auto& info) { return "Spec" + std::to_string(info.index); });

TEST_F(FusedPath, DiffersByRoundingToBf16Only) {
  for (const char* spec : {"nuq4-1%,sink=1", "k=nuq3-1%,v=had+nuq3,sink=4,recent=64"}) {
    EXPECT_LT(compare(spec, Precision::kBF16).mean_kl, 3e-4) << spec;  // 6e-5 on Zen 4
  }
}

TEST_F(FusedPath, AScaleOffByAPercentIsSeen) {
  EXPECT_GT(compare("nuq2", Precision::kF32, {.plain_scale = 1.01f}).mean_kl, 1e-5);
}

}  // namespace
}  // namespace kvquant
