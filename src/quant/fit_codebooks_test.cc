#include "quant/fit_codebooks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/walsh_hadamard.h"
#include "quant/calibration_test_data.h"
#include "quant/codebook_fit.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

constexpr CalibrationShape kShape{1, 6, 2, 16};
constexpr size_t kWidth = 32;
constexpr size_t kPlaces[] = {0, 4, 7};  // in kOutlierPercents

struct Gathered {
  std::vector<float> values, weights;
};

// Channels of all heads, or of one.
struct Channels {
  size_t first = 0, end = kWidth;
};
constexpr Channels of_head(size_t head) { return {head * 16, head * 16 + 16}; }

// What the codes of keys are found from, one by one.
Gathered gather_keys(const LayerActivations& a, const KeyFit& fit, CodebookWeighting weighting,
                     size_t i, size_t place, Channels channels = {}) {
  Gathered out;
  for (int64_t t = 0; t < a.num_tokens(); ++t) {
    if (t % a.seq_len < kCalibrationSinks) continue;
    for (size_t c = channels.first; c < channels.end; ++c) {
      const size_t at = place * kWidth + c;
      const float x = round_to_half(a.keys(t, static_cast<int64_t>(c) / 16, c % 16));
      const float scale = to_float(fit.key.scale[i][at]);
      if (scale == 0) continue;
      const bool is_outside = x < to_float(fit.key.low[i][at]) || x > to_float(fit.key.high[i][at]);
      if (place > 0 && is_outside) continue;
      const float weight = weighting == CodebookWeighting::kNone ? 1
                           : weighting == CodebookWeighting::kScale
                               ? scale * scale
                               : scale * scale * fit.channel_weights[c];
      const float y = (x - to_float(fit.key.zero[i][at])) / scale;
      out.values.push_back(std::clamp(y, -1.0f, 1.0f));
      out.weights.push_back(weight);
    }
  }
  return out;
}

// The same of values, without outliers.
Gathered gather_values(const LayerActivations& a, CodebookWeighting weighting,
                       ValueRotation rotation = ValueRotation::kNone, Channels channels = {}) {
  Gathered out;
  for (int64_t t = 0; t < a.num_tokens(); ++t) {
    if (t % a.seq_len < kCalibrationSinks) continue;
    std::vector<float> row;
    for (int64_t c = 0; c < 32; ++c) row.push_back(round_to_half(a.values(t, c / 16, c % 16)));
    for (size_t head = 0; head < kWidth && rotation == ValueRotation::kHadamard; head += 16) {
      walsh_hadamard(row.data() + head, 1, 16);
    }
    const auto [least, most] = std::minmax_element(row.begin(), row.end());
    const float scale = round_to_half(0.5f * (*most - *least));
    const float zero = round_to_half(0.5f * (*most + *least));
    for (size_t c = channels.first; c < channels.end; ++c) {
      out.values.push_back((row[c] - zero) / scale);
      out.weights.push_back(weighting == CodebookWeighting::kNone ? 1 : scale * scale);
    }
  }
  return out;
}

std::span<const float> book(const CodebookSet& set, size_t i, size_t place) {
  const size_t num_levels = size_t{4} << i;
  return std::span(set[i]).subspan(place * num_levels, num_levels);
}

void expect_near(std::span<const float> levels, std::span<const float> expected) {
  ASSERT_EQ(levels.size(), expected.size());
  for (size_t l = 0; l < levels.size(); ++l) EXPECT_NEAR(levels[l], expected[l], 1e-3) << l;
}

// A layer, its key ranges, and weights that differ much.
struct FittedLayer {
  ThreadPool pool{2};
  TestLayer layer;
  LayerCalibration fit;
  std::vector<float> weights = std::vector<float>(kWidth);

  explicit FittedLayer(int64_t seq_len) : layer(kShape, 2, seq_len, 3) { refit(); }
  void refit() {
    fit = fit_layer(layer.views, {}, pool);
    for (size_t c = 0; c < kWidth; ++c) weights[c] = c % 7 == 0 ? 50.0f : 1.0f;
  }
  KeyFit key() const { return {fit.key, weights}; }
};

TEST(FitKeyCodebooks, AreThoseOfTheNormalisedKeys) {
  FittedLayer fitted(1200);  // enough that the optimum is sharp
  for (const CodebookWeighting weighting :
       {CodebookWeighting::kNone, CodebookWeighting::kScale, CodebookWeighting::kQuery}) {
    SCOPED_TRACE(to_string(weighting));
    const CodebookSet books =
        fit_key_codebooks(fitted.layer.views, fitted.key(), {.weights = weighting}, fitted.pool);
    for (size_t i = 0; i < kNumCodebooks; ++i) {
      for (const size_t place : kPlaces) {
        const Gathered data = gather_keys(fitted.layer.views, fitted.key(), weighting, i, place);
        expect_near(book(books, i, place),
                    compute_nuq_codebook(data.values, data.weights, 2 + static_cast<int>(i)));
      }
    }
  }
}

TEST(FitKeyCodebooks, OfLloydAreNearlyAsGoodAndOthersIgnoreTheData) {
  FittedLayer fitted(300);
  const auto fit = [&](CodebookMethod method) {
    return fit_key_codebooks(fitted.layer.views, fitted.key(), {.codebook = method}, fitted.pool);
  };
  const CodebookSet exact = fit(CodebookMethod::kExact), lloyd = fit(CodebookMethod::kLloyd);
  const CodebookSet uniform = fit(CodebookMethod::kUniform);
  const CodebookSet normal_float = fit(CodebookMethod::kNormalFloat);
  const CodebookSet heuristic = fit(CodebookMethod::kHeuristic);
  for (size_t i = 0; i < kNumCodebooks; ++i) {
    const int bits = 2 + static_cast<int>(i);
    for (const size_t place : kPlaces) {
      const Gathered data =
          gather_keys(fitted.layer.views, fitted.key(), CodebookWeighting::kScale, i, place);
      const FitData fit_data{data.values, data.weights};
      const double least = codebook_cost(fit_data, book(exact, i, place));
      const double cost = codebook_cost(fit_data, book(lloyd, i, place));
      EXPECT_GE(cost, 0.999 * least);
      EXPECT_LE(cost, 1.5 * least) << bits << " bits";
      expect_near(book(uniform, i, place), uniform_codebook(bits));
      expect_near(book(normal_float, i, place), normal_float_codebook(bits));
      expect_near(book(heuristic, i, place),
                  create_heuristic_codebook("nuq" + std::to_string(bits)));
    }
  }
  EXPECT_NE(lloyd, exact);
}

TEST(FitKeyCodebooks, ConstantChannelsDontCount) {
  FittedLayer fitted(100);
  for (size_t i = 0; i < fitted.layer.keys.size(); ++i) {
    if (i % kWidth % 3 == 0) fitted.layer.keys[i] = 0.1f * static_cast<float>(i % kWidth);
  }
  fitted.refit();
  const CodebookSet books = fit_key_codebooks(fitted.layer.views, fitted.key(), {}, fitted.pool);
  for (const size_t place : kPlaces) {
    const Gathered data =
        gather_keys(fitted.layer.views, fitted.key(), CodebookWeighting::kScale, 0, place);
    EXPECT_LE(data.values.size(), size_t{2 * 96 * 21});  // 11 of 32 channels are left out
    expect_near(book(books, 0, place), compute_nuq_codebook(data.values, data.weights, 2));
  }
}

TEST(FitKeyCodebooks, OfConstantsOnlyHaveTheMiddle) {
  FittedLayer fitted(20);
  std::fill(fitted.layer.keys.begin(), fitted.layer.keys.end(), 3.0f);
  fitted.refit();
  const CodebookSet books = fit_key_codebooks(fitted.layer.views, fitted.key(), {}, fitted.pool);
  for (size_t i = 0; i < kNumCodebooks; ++i) {
    for (const size_t place : kPlaces) expect_near(book(books, i, place), fill_levels({0}, 4 << i));
  }
}

TEST(FitCodebooks, AreTheSameAtAnyNumberOfThreads) {
  FittedLayer fitted(60);
  const LayerActivations& a = fitted.layer.views;
  for (const CodebookMethod method : {CodebookMethod::kExact, CodebookMethod::kLloyd}) {
    for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
      const FitChoices choices{
          .codebook = method, .weights = CodebookWeighting::kQuery, .codebooks = scope};
      ThreadPool one(1);
      const CodebookSet keys = fit_key_codebooks(a, fitted.key(), choices, one);
      const CodebookSet values = fit_value_codebooks(a, {ValueRotation::kHadamard}, choices, one);
      for (const int num_threads : {2, 3}) {
        ThreadPool pool(num_threads);
        EXPECT_EQ(fit_key_codebooks(a, fitted.key(), choices, pool), keys);
        EXPECT_EQ(fit_value_codebooks(a, {ValueRotation::kHadamard}, choices, pool), values);
      }
    }
  }
}

TEST(FitValueCodebooks, AreThoseOfTheNormalisedRows) {
  FittedLayer fitted(300);
  const LayerActivations& a = fitted.layer.views;
  for (const CodebookWeighting weighting : {CodebookWeighting::kNone, CodebookWeighting::kScale}) {
    const CodebookSet books = fit_value_codebooks(a, {}, {.weights = weighting}, fitted.pool);
    const Gathered data = gather_values(a, weighting);
    for (size_t i = 0; i < kNumCodebooks; ++i) {
      expect_near(book(books, i, 0),
                  compute_nuq_codebook(data.values, data.weights, 2 + static_cast<int>(i)));
    }
  }
}

TEST(FitValueCodebooks, QueryWeightsAreScaleWeights) {
  FittedLayer fitted(60);
  const auto fit = [&](CodebookWeighting weighting) {
    return fit_value_codebooks(fitted.layer.views, {}, {.weights = weighting}, fitted.pool);
  };
  EXPECT_EQ(fit(CodebookWeighting::kQuery), fit(CodebookWeighting::kScale));
  EXPECT_NE(fit(CodebookWeighting::kNone), fit(CodebookWeighting::kScale));
}

TEST(FitValueCodebooks, ChannelWeightsDrawLevelsToTheirChannels) {
  FittedLayer fitted(60);
  const LayerActivations& a = fitted.layer.views;
  const std::vector<float> ones(32, 1.0f);
  std::vector<float> one_channel(32, 1e-6f);
  one_channel[3] = 1;
  const auto fit = [&](ValueRotation rotation, const std::vector<float>& weights) {
    return fit_value_codebooks(a, {rotation, weights}, {.weights = CodebookWeighting::kFisher},
                               fitted.pool);
  };
  EXPECT_EQ(fit(ValueRotation::kNone, ones), fit_value_codebooks(a, {}, {}, fitted.pool));
  EXPECT_NE(fit(ValueRotation::kNone, one_channel), fit(ValueRotation::kNone, ones));
  // Rotated, a head's channels share its mean, which is the same for all here.
  EXPECT_EQ(fit(ValueRotation::kHadamard, ones),
            fit_value_codebooks(a, {ValueRotation::kHadamard}, {}, fitted.pool));
}

// Keys and values whose heads differ: near -3 and 3, and Student's t with 3 degrees of freedom.
void make_heads_differ(TestLayer& layer) {
  const CounterRng random(5);
  for (auto* x : {&layer.keys, &layer.values}) {
    for (size_t i = 0; i < x->size(); ++i) {
      const auto [a, b] = random.normals(2 * i);
      const auto [c, d] = random.normals(2 * i + 1);
      const float student = a / std::sqrt((b * b + c * c + d * d) / 3);
      const float near_three = (random.uniform(i) < 0.5 ? -3.0f : 3.0f) + 0.1f * b;
      (*x)[i] = i % kWidth < 16 ? near_three : std::clamp(student, -20.0f, 20.0f);
    }
  }
}

// Costs on the data of both heads: with their own codebooks, and with one for both.
struct Costs {
  double own = 0, shared = 0, least = 0;
};

Costs costs_of(const std::array<Gathered, 2>& heads, std::span<const float> own,
               std::span<const float> shared) {
  Costs costs;
  const size_t num_levels = shared.size();
  for (size_t head = 0; head < 2; ++head) {
    const FitData data{heads[head].values, heads[head].weights};
    const int bits = num_levels == 4 ? 2 : num_levels == 8 ? 3 : 4;
    costs.own += codebook_cost(data, own.subspan(head * num_levels, num_levels));
    costs.shared += codebook_cost(data, shared);
    costs.least += codebook_cost(data, compute_nuq_codebook(data.values, data.weights, bits));
  }
  return costs;
}

// [2 heads, 2^bits] of a percent.
std::span<const float> head_books(const CodebookSet& set, size_t i, size_t place) {
  const size_t size = 2 * (size_t{4} << i);
  return std::span(set[i]).subspan(place * size, size);
}

constexpr FitChoices kPerHead{.codebooks = CodebookScope::kHead};

TEST(FitKeyCodebooks, OfHeadsAreTheBestOfEachAndBetterThanOneForBoth) {
  FittedLayer fitted(600);
  make_heads_differ(fitted.layer);
  fitted.refit();
  const LayerActivations& a = fitted.layer.views;
  const CodebookSet own = fit_key_codebooks(a, fitted.key(), kPerHead, fitted.pool);
  const CodebookSet shared = fit_key_codebooks(a, fitted.key(), {}, fitted.pool);
  for (size_t i = 0; i < kNumCodebooks; ++i) {
    for (const size_t place : kPlaces) {
      const auto gather = [&](size_t head) {
        return gather_keys(a, fitted.key(), CodebookWeighting::kScale, i, place, of_head(head));
      };
      const Costs costs =
          costs_of({gather(0), gather(1)}, head_books(own, i, place), book(shared, i, place));
      EXPECT_LE(costs.own, 1.01 * costs.least) << i << " at " << place;
      EXPECT_LE(costs.own, 0.95 * costs.shared) << i << " at " << place;
    }
  }
}

TEST(FitValueCodebooks, OfHeadsAreTheBestOfEachAndBetterThanOneForBoth) {
  FittedLayer fitted(600);
  make_heads_differ(fitted.layer);
  const LayerActivations& a = fitted.layer.views;
  for (const ValueRotation rotation : {ValueRotation::kNone, ValueRotation::kHadamard}) {
    const CodebookSet own = fit_value_codebooks(a, {rotation}, kPerHead, fitted.pool);
    const CodebookSet shared = fit_value_codebooks(a, {rotation}, {}, fitted.pool);
    const auto gather = [&](size_t head) {
      return gather_values(a, CodebookWeighting::kScale, rotation, of_head(head));
    };
    const std::array<Gathered, 2> heads = {gather(0), gather(1)};
    for (size_t i = 0; i < kNumCodebooks; ++i) {
      const Costs costs = costs_of(heads, head_books(own, i, 0), book(shared, i, 0));
      EXPECT_LE(costs.own, 1.01 * costs.least) << i;
      EXPECT_LE(costs.own, 0.95 * costs.shared) << i;
    }
  }
}

TEST(FitCodebooks, OfTheOnlyHeadAreThoseOfTheLayer) {
  ThreadPool pool(1);
  const TestLayer layer({1, 2, 1, 16}, 1, 60, 3);
  const LayerCalibration a = fit_layer(layer.views, {}, pool);
  const LayerCalibration b = fit_layer(layer.views, {.choices = kPerHead}, pool);
  EXPECT_EQ(a.key.codebooks, b.key.codebooks);
  EXPECT_EQ(a.value.codebooks, b.value.codebooks);
  EXPECT_EQ(a.value.hadamard_codebooks, b.value.hadamard_codebooks);
}

}  // namespace
}  // namespace kvquant
