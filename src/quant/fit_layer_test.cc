#include "quant/fit_layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kvquant/error.h"
#include "quant/calibration_test_data.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{1, 6, 2, 16};

TEST(FitLayer, PublishedKeyRangesAreThoseOfTheSequenceWithoutSinks) {
  ThreadPool pool(2);
  const TestLayer layer(kShape, 3, 100, 1);
  const LayerCalibration fit =
      fit_layer(layer.views, {.choices = recipe_choices("percentile")}, pool);
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t c = 0; c < 16; ++c) {
      std::vector<float> values;
      for (int64_t t = 0; t < 300; ++t) {
        if (t % 100 >= kCalibrationSinks) {
          values.push_back(round_to_half(layer.views.keys(t, head, c)));
        }
      }
      const auto channel = static_cast<size_t>(head * 16 + c);
      for (size_t p = 0; p < kOutlierPercents.size(); ++p) {
        const ChannelRange range = fit_channel(values, kOutlierPercents[p]);
        for (size_t i = 0; i < kNumCodebooks; ++i) {
          ASSERT_EQ(fit.key.scale[i][p * 32 + channel], range.scale);
          ASSERT_EQ(fit.key.zero[i][p * 32 + channel], range.zero);
          ASSERT_EQ(fit.key.low[i][p * 32 + channel], range.low);
          ASSERT_EQ(fit.key.high[i][p * 32 + channel], range.high);
        }
      }
      const ChannelRange all = fit_channel(values, 0);
      ASSERT_EQ(fit.key.uniform_scale[32 + channel], all.scale);
      ASSERT_EQ(fit.key.uniform_zero[channel], all.zero);
    }
  }
}

TEST(FitLayer, SinksTouchNothing) {
  ThreadPool pool(1);
  const TestLayer layer(kShape, 2, 50, 2);
  TestLayer other(kShape, 2, 50, 2);
  const auto spoil = [&](std::vector<float>& x, int64_t width) {
    for (const int64_t begin : {0, 50}) {
      std::fill_n(x.begin() + begin * width, kCalibrationSinks * width, 1e4f);
    }
  };
  for (auto* x : {&other.keys, &other.rotated_keys, &other.values}) spoil(*x, 32);
  for (auto* x : {&other.queries, &other.rotated_queries}) spoil(*x, 96);
  Calibration a, b;
  a.layers.push_back(fit_layer(layer.views, {}, pool));
  b.layers.push_back(fit_layer(other.views, {}, pool));
  EXPECT_EQ(a.layers[0].key.scale, b.layers[0].key.scale);
  EXPECT_EQ(a.layers[0].key.codebooks, b.layers[0].key.codebooks);
  EXPECT_EQ(a.layers[0].value.codebooks, b.layers[0].value.codebooks);
  EXPECT_EQ(a.layers[0].key.basis, b.layers[0].key.basis);
  EXPECT_EQ(a.layers[0].value.gram, b.layers[0].value.gram);
  EXPECT_EQ(a.layers[0].value.channels.maximum, b.layers[0].value.channels.maximum);
  EXPECT_EQ(a.layers[0].query.gram, b.layers[0].query.gram);
  EXPECT_EQ(a.layers[0].query.second_moment, b.layers[0].query.second_moment);
}

TEST(FitLayer, QueryMomentsAreTheDiagonalOfTheGramOverTheGroup) {
  ThreadPool pool(2);
  const TestLayer layer(kShape, 2, 60, 3);
  const LayerCalibration fit = fit_layer(layer.views, {}, pool);
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t c = 0; c < 16; ++c) {
      double mean = 0;
      for (int64_t q = head * 3; q < head * 3 + 3; ++q) {
        mean += fit.query.second_moment[static_cast<size_t>(q * 16 + c)] / 3.0;
      }
      EXPECT_NEAR(fit.query.gram[static_cast<size_t>(head * 256 + c * 17)], mean, 1e-4 * mean);
    }
  }
}

TEST(FitLayer, ARankKeepsTheLeadingComponents) {
  ThreadPool pool(1);
  const TestLayer layer(kShape, 2, 60, 4);
  const LayerCalibration full = fit_layer(layer.views, {}, pool);
  const LayerCalibration part = fit_layer(layer.views, {.rank = 5}, pool);
  EXPECT_EQ(part.value.spectrum, full.value.spectrum);
  const auto expect_prefix = [](const std::vector<float>& x, const std::vector<float>& y) {
    ASSERT_EQ(x.size(), 2u * 5 * 16);
    ASSERT_EQ(y.size(), 2u * 16 * 16);
    for (size_t head = 0; head < 2; ++head) {
      for (size_t i = 0; i < 80; ++i) EXPECT_EQ(x[head * 80 + i], y[head * 256 + i]);
    }
  };
  expect_prefix(part.key.basis, full.key.basis);
  expect_prefix(part.value.basis, full.value.basis);
  expect_prefix(part.value.weighted_encode, full.value.weighted_encode);
  expect_prefix(part.value.weighted_decode, full.value.weighted_decode);
}

TEST(FitLayer, IsTheSameAtAnyNumberOfThreads) {
  ThreadPool one(1), three(3);
  const TestLayer layer(kShape, 2, 60, 5);
  const LayerCalibration a = fit_layer(layer.views, {}, one);
  const LayerCalibration b = fit_layer(layer.views, {}, three);
  EXPECT_EQ(a.key.gram, b.key.gram);
  EXPECT_EQ(a.key.basis, b.key.basis);
  EXPECT_EQ(a.query.gram, b.query.gram);
  EXPECT_EQ(a.value.weighted_encode, b.value.weighted_encode);
}

TEST(FitLayer, ConstantActivationsGiveFiniteNumbers) {
  ThreadPool pool(1);
  TestLayer layer(kShape, 1, 20, 6);
  for (auto* x :
       {&layer.keys, &layer.rotated_keys, &layer.values, &layer.queries, &layer.rotated_queries}) {
    std::fill(x->begin(), x->end(), 0.0f);
  }
  std::fill(layer.output_gram.begin(), layer.output_gram.end(), 0.0);
  const LayerCalibration fit = fit_layer(layer.views, {}, pool);
  for (const auto* field : {&fit.key.basis, &fit.value.basis, &fit.value.weighted_encode,
                            &fit.value.weighted_decode, &fit.value.weighted_spectrum}) {
    for (const float x : *field) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST(FitLayer, NumbersThatAreNotFiniteAreNamed) {
  ThreadPool pool(2);
  TestLayer layer(kShape, 1, 20, 7);
  layer.values[10 * 32 + 18] = NAN;
  try {
    fit_layer(layer.views, {}, pool);
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_STREQ(error.what(), "values, head 1, channel 2: a value is not finite in fp16");
  }
}

// A fit with the metric of a rotation by 1 to 1/8 radian.
LayerCalibration fit_with(const TestLayer& layer, const FitChoices& choices) {
  ThreadPool pool(2);
  std::vector<double> angles;
  for (int i = 1; i <= 8; ++i) angles.push_back(1.0 / i);
  const LagMetric lag_metric(angles, lag_weights(60));
  return fit_layer(layer.views, {.choices = choices, .lag_metric = &lag_metric}, pool);
}

bool is_zero(const std::vector<float>& x) {
  return std::all_of(x.begin(), x.end(), [](float v) { return v == 0; });
}

TEST(FitLayer, FeedbackCanBeSwitchedOffAlone) {
  const TestLayer layer(kShape, 2, 60, 10);
  const LayerCalibration on = fit_with(layer, {});
  const LayerCalibration off = fit_with(layer, {.has_feedback = false});
  EXPECT_FALSE(is_zero(on.key.feedback));
  EXPECT_TRUE(is_zero(off.key.feedback));
  EXPECT_EQ(off.key.scale, on.key.scale);
  EXPECT_EQ(off.value.codebooks, on.value.codebooks);
  // Outliers still go where queries make errors dear: elsewhere than with all channels alike.
  ThreadPool pool(1);
  const LayerCalibration alike = fit_layer(layer.views, {.choices = {.has_feedback = false}}, pool);
  EXPECT_EQ(alike.key.scale, off.key.scale);
  EXPECT_NE(alike.key.low, off.key.low);
}

TEST(FitLayer, PercentileOutliersDontDependOnFeedback) {
  const TestLayer layer(kShape, 2, 60, 11);
  const LayerCalibration published = fit_with(layer, recipe_choices("percentile"));
  const LayerCalibration both = fit_with(layer, {.outliers = KeyOutliers::kPercentile});
  EXPECT_TRUE(is_zero(published.key.feedback));
  EXPECT_FALSE(is_zero(both.key.feedback));
  EXPECT_EQ(both.key.low, published.key.low);
  EXPECT_EQ(both.key.scale, published.key.scale);
  EXPECT_EQ(both.key.uniform_scale, published.key.uniform_scale);
  EXPECT_EQ(both.key.codebooks, published.key.codebooks);
  EXPECT_NE(both.key.low, fit_with(layer, {}).key.low);
}

TEST(FitLayer, CodebooksAreOfTheChosenMethodAndWeights) {
  const TestLayer layer(kShape, 2, 60, 12);
  const LayerCalibration exact = fit_with(layer, {});
  for (const CodebookMethod method : {CodebookMethod::kLloyd, CodebookMethod::kNormalFloat,
                                      CodebookMethod::kUniform, CodebookMethod::kHeuristic}) {
    const LayerCalibration other = fit_with(layer, {.codebook = method});
    EXPECT_EQ(other.key.scale, exact.key.scale);
    EXPECT_EQ(other.key.high, exact.key.high);
    EXPECT_EQ(other.key.feedback, exact.key.feedback);
    EXPECT_NE(other.key.codebooks, exact.key.codebooks) << to_string(method);
    EXPECT_NE(other.value.codebooks, exact.value.codebooks) << to_string(method);
    EXPECT_NE(other.value.hadamard_codebooks, exact.value.hadamard_codebooks);
  }
  const LayerCalibration none = fit_with(layer, {.weights = CodebookWeighting::kNone});
  EXPECT_EQ(none.key.high, exact.key.high);
  EXPECT_NE(none.key.codebooks, exact.key.codebooks);
  EXPECT_NE(none.value.codebooks, exact.value.codebooks);
  const LayerCalibration query = fit_with(layer, {.weights = CodebookWeighting::kQuery});
  EXPECT_NE(query.key.codebooks, exact.key.codebooks);
  EXPECT_NE(query.key.codebooks, none.key.codebooks);
  EXPECT_EQ(query.value.codebooks, exact.value.codebooks);
}

TEST(FitLayer, FisherWeightsNeedAGradientPerChannel) {
  const TestLayer layer(kShape, 1, 20, 13);
  ThreadPool pool(1);
  FitOptions options{.choices = {.weights = CodebookWeighting::kFisher}};
  EXPECT_THROW(fit_layer(layer.views, options, pool), std::invalid_argument);
  options.key_fisher.assign(32, 2.0f);
  EXPECT_THROW(fit_layer(layer.views, options, pool), std::invalid_argument);
  options.value_fisher.assign(32, 2.0f);
  const LayerCalibration same = fit_layer(layer.views, options, pool);
  const LayerCalibration scale = fit_layer(layer.views, {}, pool);
  EXPECT_EQ(same.key.codebooks, scale.key.codebooks);  // a common factor changes nothing
  EXPECT_EQ(same.value.codebooks, scale.value.codebooks);
  options.key_fisher[3] = options.value_fisher[5] = 1000;
  const LayerCalibration other = fit_layer(layer.views, options, pool);
  EXPECT_NE(other.key.codebooks, scale.key.codebooks);
  EXPECT_NE(other.value.codebooks, scale.value.codebooks);
}

TEST(FitLayer, ShapesAndRanksThatDontFitAreRefused) {
  ThreadPool pool(1);
  const TestLayer layer(kShape, 1, 20, 8);
  EXPECT_THROW(fit_layer(layer.views, {.rank = 17}, pool), std::invalid_argument);
  EXPECT_THROW(fit_layer(layer.views, {.rank = -1}, pool), std::invalid_argument);
  LayerActivations views = layer.views;
  views.values.shape[1] = 1;
  EXPECT_THROW(fit_layer(views, {}, pool), std::invalid_argument);
  views = layer.views;
  views.output_gram = views.output_gram.first(10);
  EXPECT_THROW(fit_layer(views, {}, pool), std::invalid_argument);
  const TestLayer all_sinks(kShape, 5, kCalibrationSinks, 9);
  EXPECT_THROW(fit_layer(all_sinks.views, {}, pool), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
