#include "eval/tune_preset.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/sha256.h"
#include "base/test_path.h"

namespace kvquant {
namespace {

CandidateScore candidate(const char* spec, double bits, double delta) {
  return {.spec = parse_spec(spec),
          .windows = 1,
          .tokens = 99,
          .perplexity = 5 * (1 + delta),
          .baseline = 5,
          .ppl_delta = delta,
          .kl_mean = delta,
          .top1_agreement = 0.5,
          .true_bits = bits};
}

TunePresetOptions options() {
  return {.model = {.name = "other",
                    .fingerprint = "0123456789abcdef",
                    .num_layers = 2,
                    .num_kv_heads = 2,
                    .head_dim = 32},
          .name = "mine",
          .window = 100,
          .program = "1.2.3 (commit)"};
}

TEST(TunePreset, SaysWhatWasMeasuredOfAModelThatNoCheckpointHolds) {
  const std::string text = test::test_path("text");
  write_file_atomic(text, "A text.");
  const TuneResult result{.candidates = {candidate("nuq4", 4.25, 0.02), candidate("int8", 8, 0)},
                          .measured = {candidate("nuq4", 4.25, 0.03), candidate("int8", 8, 0.01)},
                          .winner = 0};
  TuneTexts texts;
  texts.test_file = text;
  texts.test_begin = 7;
  Preset preset = tuned_preset(result, texts, options());
  EXPECT_EQ(preset.model_fingerprint, "0123456789abcdef");
  EXPECT_EQ(preset.head_dim, 32);
  EXPECT_EQ(preset.ppl_delta, 0.03);
  EXPECT_EQ(preset.selection_ppl_delta, 0.02);
  EXPECT_EQ(preset.true_bits, 4.25);
  EXPECT_DOUBLE_EQ(preset.compression_ratio, 16 / 4.25);
  EXPECT_EQ(preset.pareto.size(), 2u);
  EXPECT_EQ(preset.eval_begin, 7);
  EXPECT_EQ(preset.eval_text_sha256, sha256_hex("A text."));
  EXPECT_EQ(preset.made_by, "kvquant tune 1.2.3");

  const std::string path = test::test_path("preset");
  save_tuned_preset(preset, nullptr, path);
  EXPECT_EQ(preset_json(load_preset(path)), preset_json(preset));
  EXPECT_EQ(load_preset(path).calibration_file, "");
  std::filesystem::remove(path);
  std::filesystem::remove(text);
}

TEST(TunePreset, WarnsOfADivergenceAboveTheBudget) {
  EXPECT_EQ(divergence_warning(candidate("nuq4", 4.25, 0.04), 0.05), "");
  const std::string warning = divergence_warning(candidate("nuq4", 4.25, 0.06), 0.05);
  EXPECT_NE(warning.find("nuq4 is within the budget, but its KL of 0.0600 is that of a rise by "
                         "6.18%"),
            std::string::npos)
      << warning;
}

TEST(TunePreset, AFailureNamesWhatCameClosest) {
  TuneResult result;
  result.candidates = {candidate("nuq2", 2, 0.5), candidate("nuq3", 3, 0.125)};
  const std::string message = describe_failure(result, 0.05);
  EXPECT_NE(message.find("PPL degradation too high: of 2 settings none is smaller than fp16 and "
                         "within 5.00%, nuq3 comes closest (+12.50%"),
            std::string::npos)
      << message;
  EXPECT_THROW(tuned_preset(result, {}, options()), std::invalid_argument);
  EXPECT_NE(describe_failure({}, 0.05).find("no settings"), std::string::npos);
}

}  // namespace
}  // namespace kvquant
