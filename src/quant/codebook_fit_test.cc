#include "quant/codebook_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>

#include "formats/nuq_codebook.h"
#include "quant/codebook_methods.h"

namespace kvquant {
namespace {

constexpr int kNumShapes = 7;

// Values in [-1, 1] of one of several distributions, and weights: none, uniform or spread wide.
struct Sample {
  std::vector<float> values, weights;
  FitData data() const { return {values, weights}; }
};

Sample random_sample(size_t size, int shape, std::mt19937& rng) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::student_t_distribution<double> heavy(2);
  std::vector<double> raw(size);
  double largest = 1e-9;
  for (double& x : raw) {
    switch (shape) {
      case 0: x = normal(rng); break;
      case 1: x = uniform(rng); break;
      case 2: x = heavy(rng); break;
      case 3: x = std::tan(1.57 * uniform(rng)); break;            // almost Cauchy
      case 4: x = std::round(4 * normal(rng)); break;              // few distinct values
      case 5: x = 3 + 0.01 * normal(rng); break;                   // far from zero
      default: x = 0.05 * normal(rng) + (rng() % 3 - 1.0); break;  // three heaps
    }
    largest = std::max(largest, std::fabs(x));
  }
  Sample sample;
  for (const double x : raw) sample.values.push_back(static_cast<float>(x / largest));
  const unsigned kind = rng() % 3;
  for (size_t i = 0; kind > 0 && i < size; ++i) {
    const double weight = kind == 1 ? uniform(rng) + 1 : std::exp(4 * normal(rng));
    sample.weights.push_back(static_cast<float>(weight));
  }
  return sample;
}

double total_weight(const Sample& sample) {
  double total = 0;
  for (const float w : sample.weights) total += w;
  return sample.weights.empty() ? static_cast<double>(sample.values.size()) : total;
}

// What rounding the levels to f32 may cost.
double rounding_cost(const Sample& sample) { return 1e-14 * total_weight(sample); }

// The least cost of all ways to cut the sorted values into num_runs runs.
double brute_force_cost(const Sample& sample, int num_runs) {
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i < sample.values.size(); ++i) {
    points.emplace_back(sample.values[i], sample.weights.empty() ? 1.0 : sample.weights[i]);
  }
  std::sort(points.begin(), points.end());
  const std::function<double(size_t, int)> best = [&](size_t begin, int runs) -> double {
    if (begin == points.size()) return 0;
    if (runs == 0) return std::numeric_limits<double>::infinity();
    double least = std::numeric_limits<double>::infinity();
    for (size_t end = begin + 1; end <= points.size(); ++end) {
      double weight = 0, sum = 0, cost = 0;
      for (size_t i = begin; i < end; ++i) {
        weight += points[i].second;
        sum += points[i].second * points[i].first;
      }
      const double mean = sum / weight;
      for (size_t i = begin; i < end; ++i) {
        cost += points[i].second * (points[i].first - mean) * (points[i].first - mean);
      }
      least = std::min(least, cost + best(end, runs - 1));
    }
    return least;
  };
  return best(0, num_runs);
}

TEST(CodebookFit, EqualsTheBestOfAllPartitions) {
  std::mt19937 rng(1);
  for (int trial = 0; trial < 300; ++trial) {
    const int bits = trial % 10 == 0 ? 3 : 2;
    const Sample sample = random_sample(1 + rng() % 11, trial % kNumShapes, rng);
    const auto levels = compute_nuq_codebook(sample.values, sample.weights, bits);
    EXPECT_NO_THROW(make_codebook(levels));
    const double expected = brute_force_cost(sample, 1 << bits);
    EXPECT_NEAR(codebook_cost(sample.data(), levels), expected,
                1e-9 * expected + rounding_cost(sample))
        << "trial " << trial;
  }
}

TEST(CodebookFit, NeverCostsMoreThanLloydOnAThousandInputs) {
  std::mt19937 rng(2);
  int better = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    const int bits = 2 + trial % 3;
    const Sample sample = random_sample(1 + rng() % 600, trial % kNumShapes, rng);
    const auto levels = compute_nuq_codebook(sample.values, sample.weights, bits);
    const double cost = codebook_cost(sample.data(), levels);
    for (const LloydStart start : {LloydStart::kQuantiles, LloydStart::kPlusPlus}) {
      const auto other = lloyd_codebook(sample.data(), bits, start, trial);
      const double lloyd_cost = codebook_cost(sample.data(), other);
      EXPECT_LE(cost, lloyd_cost * (1 + 1e-9) + rounding_cost(sample)) << "trial " << trial;
      better += cost < 0.99 * lloyd_cost ? 1 : 0;
    }
  }
  EXPECT_GT(better, 500);  // else the comparison would say little
}

TEST(CodebookFit, ManyValuesOfAnyShapeCostNoMoreThanLloydNeedsUpToTheCells) {
  std::mt19937 rng(3);
  for (int shape = 0; shape < kNumShapes; ++shape) {
    for (const int bits : {2, 3, 4}) {
      const Sample sample = random_sample(20000, shape, rng);
      const double cost =
          codebook_cost(sample.data(), compute_nuq_codebook(sample.values, sample.weights, bits));
      const double lloyd_cost =
          codebook_cost(sample.data(), lloyd_codebook(sample.data(), bits, LloydStart::kPlusPlus));
      EXPECT_LE(cost, lloyd_cost * 1.00001 + rounding_cost(sample))
          << "shape " << shape << ", " << bits << " bits";
    }
  }
}

TEST(CodebookFit, WeightsCountAsCopies) {
  std::mt19937 rng(4);
  Sample weighted = random_sample(200, 0, rng), copied;
  weighted.weights.clear();
  for (const float x : weighted.values) {
    const int copies = static_cast<int>(rng() % 4);
    weighted.weights.push_back(static_cast<float>(copies));
    copied.values.insert(copied.values.end(), copies, x);
  }
  const auto a = compute_nuq_codebook(weighted.values, weighted.weights, 3);
  const auto b = compute_nuq_codebook(copied.values, {}, 3);
  for (int l = 0; l < 8; ++l) EXPECT_NEAR(a[l], b[l], 1e-6);
}

TEST(CodebookFit, IsDeterministicAndIgnoresScaledWeights) {
  std::mt19937 rng(5);
  for (const size_t size : {100, 5000}) {
    Sample sample = random_sample(size, 2, rng);
    sample.weights.assign(size, 1);
    for (size_t i = 0; i < size; i += 3) sample.weights[i] = 5;
    const auto once = compute_nuq_codebook(sample.values, sample.weights, 4);
    EXPECT_EQ(compute_nuq_codebook(sample.values, sample.weights, 4), once);
    for (float& w : sample.weights) w *= 1024;
    EXPECT_EQ(compute_nuq_codebook(sample.values, sample.weights, 4), once);
  }
}

TEST(CodebookFit, EqualChoicesGoToTheFirstCut) {
  // Five evenly spaced values, four levels: any neighbours could share one.
  const std::vector<float> values = {-1, -0.5f, 0, 0.5f, 1};
  const auto levels = compute_nuq_codebook(values, {}, 2);
  EXPECT_EQ(levels, (std::vector<float>{-1, -0.5f, 0, 0.75f}));
  EXPECT_EQ(compute_nuq_codebook(std::vector<float>(values.rbegin(), values.rend()), {}, 2),
            levels);
  EXPECT_DOUBLE_EQ(codebook_cost({values, {}}, levels), 0.125);
}

TEST(CodebookFit, FewDistinctValuesAreLevelsThemselvesAndGapsAreFilled) {
  const std::vector<float> values = {0.3f, -0.1f, 0.3f, 0.3f, -0.0f, 0.0f};
  const auto levels = compute_nuq_codebook(values, {}, 3);
  EXPECT_NO_THROW(make_codebook(levels));
  for (const float x : values) {
    EXPECT_NE(std::find(levels.begin(), levels.end(), x), levels.end()) << x;
  }
  EXPECT_EQ(compute_nuq_codebook(std::vector<float>{1}, {}, 2),
            (std::vector<float>{-1, -0.5f, 0, 1}));
  EXPECT_EQ(compute_nuq_codebook(std::vector<float>{-1, 1}, {}, 2),
            (std::vector<float>{-1, -0.5f, 0, 1}));
  EXPECT_EQ(fill_levels({}, 4), (std::vector<float>{-1, -0.5f, 0, 1}));
}

TEST(CodebookFit, NeighbouringNumbersStayApart) {
  std::vector<float> values = {0.7f};
  for (int i = 0; i < 15; ++i) values.push_back(std::nextafter(values.back(), 1.0f));
  EXPECT_EQ(compute_nuq_codebook(values, {}, 4), values);
  std::vector<float> tiny = {0};
  for (int i = 0; i < 15; ++i) tiny.push_back(std::nextafter(tiny.back(), 1.0f));
  EXPECT_NO_THROW(make_codebook(compute_nuq_codebook(tiny, {}, 4)));
}

TEST(CodebookFit, ValuesOutsideCountAsTheEndsAndWeightlessOnesNotAtAll) {
  const std::vector<float> values = {-5, -0.5f, 0.5f, 70, 0.9f}, weights = {1, 1, 1, 1, 0};
  EXPECT_EQ(compute_nuq_codebook(values, weights, 2), (std::vector<float>{-1, -0.5f, 0.5f, 1}));
  std::vector<float> many(9000), light(9000, 1);
  for (size_t i = 0; i < many.size(); ++i) many[i] = 0.1f + 1e-5f * static_cast<float>(i);
  many[7] = -1;
  light[7] = 0;
  const auto levels = compute_nuq_codebook(many, light, 2);
  EXPECT_GT(levels[0], 0.1f);
}

TEST(CodebookFit, ManyCellsAreAtMost4096AndHoldEverything) {
  std::mt19937 rng(6);
  for (int shape = 0; shape < kNumShapes; ++shape) {
    const Sample sample = random_sample(30000, shape, rng);
    const auto cells = gather_cells(sample.values, sample.weights);
    EXPECT_LE(cells.size(), 4096u);
    double weight = 0, last = -2;
    for (const HistogramCell& cell : cells) {
      weight += cell.weight;
      EXPECT_GT(cell.sum / cell.weight, last);
      last = cell.sum / cell.weight;
    }
    EXPECT_NEAR(weight, total_weight(sample), 1e-9 * weight);
  }
}

TEST(CodebookFit, ErrorOnNormalDataIsTheOptimum) {
  constexpr double kClip = 2.5758;
  std::mt19937 rng(7);
  std::normal_distribution<double> normal;
  std::vector<float> values;
  constexpr int kSamples = 400000;
  for (int i = 0; i < kSamples; ++i) {
    const double x = normal(rng) / kClip;
    if (std::fabs(x) <= 1) values.push_back(static_cast<float>(x));
  }
  const double expected[] = {0.0966, 0.0263, 0.0068};
  for (const int bits : {2, 3, 4}) {
    const auto levels = compute_nuq_codebook(values, {}, bits);
    const double error = codebook_cost({values, {}}, levels) * kClip * kClip / kSamples;
    EXPECT_NEAR(error, expected[bits - 2], 0.01 * expected[bits - 2]);
  }
}

TEST(CodebookFit, RefusesWhatItCanNotFit) {
  const std::vector<float> values = {0, 0.5f}, zeros = {0, 0}, negative = {1, -1}, one = {1};
  const std::vector<float> nan = {0, NAN}, infinite = {0, INFINITY};
  for (const int bits : {-1, 0, 1, 5, 8}) {
    EXPECT_THROW(compute_nuq_codebook(values, {}, bits), std::invalid_argument);
  }
  EXPECT_THROW(compute_nuq_codebook({}, {}, 2), std::invalid_argument);
  EXPECT_THROW(compute_nuq_codebook(nan, {}, 2), std::invalid_argument);
  EXPECT_THROW(compute_nuq_codebook(infinite, {}, 2), std::invalid_argument);
  for (const auto& weights : {zeros, negative, one, nan, infinite}) {
    EXPECT_THROW(compute_nuq_codebook(values, weights, 2), std::invalid_argument);
  }
}

TEST(WeightedHistogram, FitEqualsThatOfTheValuesUpToItsBins) {
  std::mt19937 rng(8);
  Sample sample = random_sample(20000, 0, rng);
  sample.weights.assign(sample.values.size(), 1);
  for (size_t i = 0; i < sample.weights.size(); i += 2) sample.weights[i] = 3;
  WeightedHistogram histogram, even, odd;
  for (size_t i = 0; i < sample.values.size(); ++i) {
    histogram.add(sample.values[i], sample.weights[i]);
    (i % 2 == 0 ? even : odd).add(sample.values[i], sample.weights[i]);
  }
  even.merge(odd);
  EXPECT_EQ(histogram.total_weight(), total_weight(sample));
  EXPECT_EQ(even.total_weight(), total_weight(sample));
  for (const int bits : {2, 3, 4}) {
    const auto levels = compute_nuq_codebook(histogram, bits);
    EXPECT_NO_THROW(make_codebook(levels));
    const double cost = codebook_cost(sample.data(), levels);
    const double exact =
        codebook_cost(sample.data(), compute_nuq_codebook(sample.values, sample.weights, bits));
    EXPECT_NEAR(cost, exact, 1e-4 * exact);
    const auto merged = compute_nuq_codebook(even, bits);
    for (size_t l = 0; l < levels.size(); ++l) EXPECT_NEAR(merged[l], levels[l], 1e-6);
  }
}

TEST(WeightedHistogram, BinsHaveExactBordersAndEndsTakeWhatIsOutside) {
  WeightedHistogram histogram;
  histogram.add(-1, 1);
  histogram.add(-7, 1);
  histogram.add(-0x1p-40f, 2);
  histogram.add(0, 4);
  histogram.add(1, 8);
  histogram.add(9, 8);
  EXPECT_EQ(histogram.cells()[0].weight, 2);
  EXPECT_EQ(histogram.cells()[0].sum, -2);
  EXPECT_EQ(histogram.cells()[2048].weight, 4);
  EXPECT_EQ(histogram.cells()[4095].weight, 16);
  EXPECT_EQ(histogram.cells()[4095].square_sum, 16);
}

TEST(WeightedHistogram, RefusesBadNumbersAndAnEmptyFit) {
  WeightedHistogram histogram;
  EXPECT_THROW(histogram.add(NAN, 1), std::invalid_argument);
  EXPECT_THROW(histogram.add(0, -1), std::invalid_argument);
  EXPECT_THROW(histogram.add(0, INFINITY), std::invalid_argument);
  EXPECT_THROW(compute_nuq_codebook(histogram, 3), std::invalid_argument);
  histogram.add(0, 1);
  EXPECT_THROW(compute_nuq_codebook(histogram, 5), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
