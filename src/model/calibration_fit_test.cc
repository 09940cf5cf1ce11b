#include "model/calibration_fit.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "kvquant/error.h"
#include "model/layer_stream.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

class CalibrationFits : public testing::Test {
 protected:
  CalibrationFits() {
    std::vector<int32_t> tokens(100);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(17 * i % 4000);
    texts_ = {{"folder/a.txt", tokens}};
  }
  FitModel fit_model() {
    return {.shape = calibration_shape(model_.config()),
            .fingerprint = model_.checkpoint().fingerprint(),
            .rope = model_.transformer().rope_table(),
            .outputs = {.scale = score_scale(model_.config()),
                        .sliding_window = 0,
                        .precision = model_.transformer().precision()},
            .pool = model_.pool()};
  }

  Model model_ = Model::load(kEmbedded, {.precision = Precision::kF32});
  std::vector<TokenizedText> texts_;
  CalibrateOptions options_{.num_samples = 2, .seq_len = 32};
};

TEST_F(CalibrationFits, TakeLayersOneByOne) {
  const CalibrationSamples samples = choose_samples(texts_, 0, options_);
  ASSERT_EQ(samples.tokens.size(), 2u);
  EXPECT_EQ(samples.tokens[0].size(), 32u);
  EXPECT_EQ(samples.tokens[0][0], 0);
  EXPECT_EQ(samples.texts[0].file, "a.txt");
  EXPECT_EQ(samples.texts[0].end - samples.texts[0].begin, 31);
  CalibrationFit fit(fit_model(), options_, samples.texts);
  EXPECT_THROW(fit.finish(), std::invalid_argument);
  stream_layers(model_, samples.tokens, {},
                [&](int64_t, const LayerActivations& x) { fit.add_layer(x); });
  const Calibration out = fit.finish();
  EXPECT_EQ(calibration_hash(out), calibration_hash(calibrate(model_, texts_, options_)));
}

TEST_F(CalibrationFits, RefuseActivationsThatAreNotOfTheModel) {
  const CalibrationSamples samples = choose_samples(texts_, -1, options_);
  EXPECT_EQ(samples.texts[0].end - samples.texts[0].begin, 32);
  CalibrationFit fit(fit_model(), options_, {samples.texts[0]});  // of one sample
  stream_layers(model_, samples.tokens, {}, [&](int64_t, const LayerActivations& x) {
    EXPECT_THROW(fit.add_layer(x), std::invalid_argument);
  });
}

TEST_F(CalibrationFits, RefuseOptionsThatDontGoTogether) {
  options_.rank = 65;
  EXPECT_THROW(CalibrationFit(fit_model(), options_, {}), std::invalid_argument);
  options_.rank = 0;
  options_.fisher = "no-such-file";
  EXPECT_THROW(CalibrationFit(fit_model(), options_, {}), std::invalid_argument);
  options_.choices.weights = CodebookWeighting::kFisher;
  EXPECT_THROW(CalibrationFit(fit_model(), options_, {}), IoError);
  options_.seq_len = 101;
  EXPECT_THROW(choose_samples(texts_, -1, options_), std::invalid_argument);
}

TEST_F(CalibrationFits, SumOutputProjectionsOverTheHeadsOfAGroup) {
  const CalibrationShape shape{1, 2, 1, 2};
  const std::vector<float> weight = {1, 2, 3, 4, 5, 6, 7, 8};  // [2, 2 * 2]
  const auto gram = sum_output_gram(weight, shape, model_.pool());
  // Heads (1 2 / 5 6) and (3 4 / 7 8): 1 + 25 + 9 + 49, 2 + 30 + 12 + 56, 4 + 36 + 16 + 64.
  EXPECT_EQ(gram, (std::vector<double>{84, 100, 100, 120}));
}

}  // namespace
}  // namespace kvquant
