#include "model/calibrate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "base/file.h"
#include "base/test_path.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

int64_t position(const TextWindow& w) { return w.text * 1'000'000 + w.begin; }

TEST(ChooseWindows, AreDisjointInsideTheirTextsAndSpreadOverThem) {
  const std::vector<int64_t> lengths = {1000, 9, 550, 10};
  for (const uint64_t seed : {0, 1, 42}) {
    const auto windows = choose_windows(lengths, 10, 12, seed);
    ASSERT_EQ(windows.size(), 12u);
    for (size_t i = 0; i < windows.size(); ++i) {
      EXPECT_EQ(windows[i].begin % 10, 0);
      EXPECT_LE(windows[i].begin + 10, lengths[static_cast<size_t>(windows[i].text)]);
      EXPECT_GT(position(windows[i]), i > 0 ? position(windows[i - 1]) : -1);
      // The i-th of 12 parts of the 156 whole windows, the first 100 of which are of text 0.
      const int64_t at = windows[i].begin / 10 + (windows[i].text == 2   ? 100
                                                  : windows[i].text == 3 ? 155
                                                                         : 0);
      EXPECT_EQ(at * 12 / 156, static_cast<int64_t>(i));
    }
  }
}

TEST(ChooseWindows, DependOnTheSeedOnly) {
  const std::vector<int64_t> lengths = {100000};
  const auto begins = [&](uint64_t seed) {
    std::vector<int64_t> out;
    for (const auto& w : choose_windows(lengths, 64, 16, seed)) out.push_back(w.begin);
    return out;
  };
  EXPECT_EQ(begins(42), begins(42));
  EXPECT_NE(begins(42), begins(43));
}

TEST(ChooseWindows, OfShortTextsAreAllThereAre) {
  const auto windows = choose_windows(std::vector<int64_t>{25, 9, 20}, 10, 16, 42);
  ASSERT_EQ(windows.size(), 4u);
  EXPECT_EQ(windows[1].begin, 10);
  EXPECT_EQ(windows[2].text, 2);
  EXPECT_TRUE(choose_windows(std::vector<int64_t>{9}, 10, 16, 42).empty());
  EXPECT_TRUE(choose_windows({}, 10, 16, 42).empty());
  EXPECT_THROW(choose_windows({}, 0, 16, 42), std::invalid_argument);
}

std::string bytes_of(const Calibration& calibration) {
  const std::string path = test::test_path("file");
  save_calibration(calibration, path);
  return read_text(path);
}

std::vector<TokenizedText> sample_text(const Model& model) {
  return {{"some/folder/sample.txt",
           model.tokenizer().encode(read_text(KVQUANT_SOURCE_DIR "/assets/sample.txt"),
                                    Tokenizer::Special::kAsText, Tokenizer::Bos::kNever)}};
}

TEST(Calibrate, GivesTheSameBytesAtAnyNumberOfThreads) {
  for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
    std::vector<std::string> files;
    for (const int num_threads : {1, 2, 3}) {
      Model model =
          Model::load(kEmbedded, {.num_threads = num_threads, .precision = default_precision()});
      files.push_back(
          bytes_of(calibrate(model, sample_text(model),
                             {.num_samples = 2, .seq_len = 256, .choices = {.codebooks = scope}})));
    }
    EXPECT_EQ(files[0], files[1]) << to_string(scope);
    EXPECT_EQ(files[0], files[2]) << to_string(scope);
  }
}

TEST(Calibrate, SaysWhatItWasMadeFrom) {
  Model model = Model::load(kEmbedded);
  const auto texts = sample_text(model);
  const Calibration c =
      calibrate(model, texts, {.num_samples = 3, .seq_len = 64, .rank = 10, .seed = 7});
  EXPECT_EQ(c.info.model_fingerprint, model.checkpoint().fingerprint());
  EXPECT_EQ(c.info.shape, calibration_shape(model.config()));
  EXPECT_EQ(c.info.num_samples, 3);
  EXPECT_EQ(c.info.seq_len, 64);
  EXPECT_EQ(c.info.rank, 10);
  EXPECT_EQ(c.info.seed, 7u);
  EXPECT_EQ(c.info.recipe,
            "outliers=error-saved feedback=on codebook=exact weights=scale codebooks=layer "
            "bases=outputs");
  ASSERT_EQ(c.info.texts.size(), 3u);
  for (const auto& text : c.info.texts) {
    EXPECT_EQ(text.file, "sample.txt");
    EXPECT_LE(text.end - text.begin, 64);
    EXPECT_GE(text.end - text.begin, 63);
    EXPECT_EQ(text.hash.size(), 16u);
  }
  EXPECT_NE(c.info.texts[0].hash, c.info.texts[1].hash);
  check_calibration_fits(c, model.checkpoint().fingerprint(), calibration_shape(model.config()));
  ASSERT_EQ(static_cast<int64_t>(c.layers.size()), model.config().num_layers);
  // Of values, variance along all components is that of all channels; sums of values vary less.
  const Calibration of_values = calibrate(
      model, texts,
      {.num_samples = 3, .seq_len = 64, .seed = 7, .choices = {.bases = ValueBases::kValues}});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const auto sum = [](const std::vector<float>& x) {
      return std::accumulate(x.begin(), x.end(), 0.0);
    };
    const auto& value = of_values.layers[i].value;
    EXPECT_NEAR(sum(value.spectrum), sum(value.channels.variance), 1e-4 * sum(value.spectrum));
    EXPECT_LT(sum(c.layers[i].value.spectrum), 0.8 * sum(value.spectrum));
    EXPECT_EQ(c.layers[i].value.gram, value.gram);
  }
  // All heads of a layer together: one basis, which keeps less of each head than its own does.
  const Calibration pooled = calibrate(
      model, texts,
      {.num_samples = 3, .seq_len = 64, .seed = 7, .choices = {.bases = ValueBases::kPooled}});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const std::vector<float>& basis = pooled.layers[i].value.basis;
    const size_t of_head = basis.size() / static_cast<size_t>(pooled.info.shape.num_kv_heads);
    const std::vector<float> first(basis.begin(), basis.begin() + static_cast<int64_t>(of_head));
    const std::vector<float> second(basis.begin() + static_cast<int64_t>(of_head),
                                    basis.begin() + static_cast<int64_t>(2 * of_head));
    EXPECT_EQ(first, second);
    EXPECT_NE(first,
              std::vector<float>(c.layers[i].value.basis.begin(),
                                 c.layers[i].value.basis.begin() + static_cast<int64_t>(of_head)));
    EXPECT_EQ(pooled.layers[i].value.gram, c.layers[i].value.gram);
  }
}

TEST(Calibrate, SaysWhatWasChosenAndDoesIt) {
  Model model = Model::load(kEmbedded);
  const auto texts = sample_text(model);
  const Calibration c = calibrate(model, texts,
                                  {.num_samples = 1,
                                   .seq_len = 64,
                                   .choices = {.outliers = KeyOutliers::kPercentile,
                                               .has_feedback = false,
                                               .codebook = CodebookMethod::kUniform}});
  EXPECT_EQ(c.info.recipe,
            "outliers=percentile feedback=off codebook=uniform weights=scale codebooks=layer "
            "bases=outputs");
  const std::vector<float>& levels = c.layers.back().key.codebooks[0];
  EXPECT_EQ(std::vector<float>(levels.begin(), levels.begin() + 4), uniform_codebook(2));
  const Calibration ours = calibrate(model, texts, {.num_samples = 1, .seq_len = 64});
  EXPECT_NE(ours.layers[0].key.feedback, c.layers[0].key.feedback);
}

TEST(Calibrate, OptionsAndTextsThatDontFitAreRefused) {
  Model model = Model::load(kEmbedded);
  const auto texts = sample_text(model);
  for (const CalibrateOptions& options :
       {CalibrateOptions{.num_samples = 0}, CalibrateOptions{.seq_len = 2049},
        CalibrateOptions{.seq_len = 15}, CalibrateOptions{.seq_len = -1},
        CalibrateOptions{.rank = 65}, CalibrateOptions{.rank = -1}}) {
    EXPECT_THROW(calibrate(model, texts, options), std::invalid_argument);
  }
  const std::vector<TokenizedText> few = {{"a", std::vector<int32_t>(60, 5)},
                                          {"b", std::vector<int32_t>(30, 5)}};
  try {
    calibrate(model, few, {.seq_len = 64});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "calibrate: the longest text has 60 tokens, fewer than one sample of 64: give "
                 "longer texts or a shorter --seq-len");
  }
  EXPECT_THROW(calibrate(model, {}, {}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
