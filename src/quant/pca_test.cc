#include "quant/pca.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

namespace kvquant {
namespace {

using Vectors = std::vector<float>;

TensorView<const float, 2> rows_of(const Vectors& x, int64_t dim) {
  return row_major<const float, 2>(x.data(), {static_cast<int64_t>(x.size()) / dim, dim});
}

// Correlated normal vectors around a mean: x = mean + A n.
Vectors correlated(int64_t count, int64_t dim, unsigned seed, float offset = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Vectors mix(static_cast<size_t>(dim * dim)), out;
  for (float& x : mix) x = normal(random);
  for (int64_t t = 0; t < count; ++t) {
    Vectors noise(static_cast<size_t>(dim));
    for (float& x : noise) x = normal(random);
    for (int64_t i = 0; i < dim; ++i) {
      float sum = offset * static_cast<float>(i % 3);
      for (int64_t j = 0; j < dim; ++j) {
        sum += mix[i * dim + j] * noise[j] / static_cast<float>(1 + j);
      }
      out.push_back(sum);
    }
  }
  return out;
}

Covariance covariance_of(const Vectors& x, int64_t dim) {
  CovarianceSum sum(dim);
  sum.add(rows_of(x, dim));
  return sum.result();
}

// Mean of (x - x')^T M (x - x') over the vectors, with x' of rank `rank`. Plain loops.
double error_of(const Vectors& x, const std::vector<double>& mean, const PcaBasis& basis,
                int64_t rank, const std::vector<double>& weights) {
  const int64_t dim = basis.dim, count = static_cast<int64_t>(x.size()) / dim;
  double total = 0;
  for (int64_t t = 0; t < count; ++t) {
    std::vector<double> left(static_cast<size_t>(dim));
    for (int64_t c = 0; c < dim; ++c) left[c] = x[t * dim + c] - mean[c];
    const std::vector<double> centred = left;
    for (int64_t r = 0; r < rank; ++r) {
      double z = 0;
      for (int64_t c = 0; c < dim; ++c) z += double{basis.encode[r * dim + c]} * centred[c];
      for (int64_t c = 0; c < dim; ++c) left[c] -= z * double{basis.decode[r * dim + c]};
    }
    for (int64_t i = 0; i < dim; ++i) {
      for (int64_t j = 0; j < dim; ++j) total += left[i] * weights[i * dim + j] * left[j];
    }
  }
  return total / static_cast<double>(count);
}

std::vector<double> identity(int64_t dim) {
  std::vector<double> out(static_cast<size_t>(dim * dim));
  for (int64_t i = 0; i < dim; ++i) out[i * dim + i] = 1;
  return out;
}

// Largest difference of B B^T (of decode and encode) from the identity.
double distance_from_orthonormal(const PcaBasis& basis) {
  double worst = 0;
  for (int64_t i = 0; i < basis.dim; ++i) {
    for (int64_t j = 0; j < basis.dim; ++j) {
      double dot = i == j ? -1 : 0;
      for (int64_t c = 0; c < basis.dim; ++c) {
        dot += double{basis.encode[i * basis.dim + c]} * basis.decode[j * basis.dim + c];
      }
      worst = std::max(worst, std::abs(dot));
    }
  }
  return worst;
}

TEST(CovarianceSum, EqualsTheDefinitionOnAKnownCase) {
  const Covariance c = covariance_of({1, 2, 3, 6, 5, 1}, 2);
  EXPECT_EQ(c.count, 3);
  EXPECT_DOUBLE_EQ(c.mean[0], 3);
  EXPECT_DOUBLE_EQ(c.mean[1], 3);
  EXPECT_DOUBLE_EQ(c.matrix[0], 8.0 / 3);
  EXPECT_DOUBLE_EQ(c.matrix[1], -2.0 / 3);
  EXPECT_DOUBLE_EQ(c.matrix[2], -2.0 / 3);
  EXPECT_DOUBLE_EQ(c.matrix[3], 14.0 / 3);
  CovarianceSum sum(2);
  const Vectors x = {1, 2, 3, 6, 5, 1};
  sum.add(rows_of(x, 2));
  const std::vector<double> expected = {35, 25, 25, 41};
  for (size_t i = 0; i < 4; ++i) EXPECT_DOUBLE_EQ(sum.sum_of_products()[i], expected[i]);
}

TEST(CovarianceSum, PartsAndStridesGiveTheSameAsOneCall) {
  const int64_t dim = 16;
  const Vectors x = correlated(700, dim, 1);
  const Covariance whole = covariance_of(x, dim);
  CovarianceSum parts(dim);
  for (int64_t begin = 0; begin < 700; begin += 100) {
    parts.add({.data = x.data() + begin * dim, .shape = {100, dim}, .stride = {dim, 1}});
  }
  parts.add({.data = x.data(), .shape = {0, dim}, .stride = {dim, 1}});
  const Covariance c = parts.result();
  EXPECT_EQ(c.count, 700);
  for (size_t i = 0; i < c.matrix.size(); ++i) EXPECT_NEAR(c.matrix[i], whole.matrix[i], 1e-11);

  Vectors wide(700 * 20, 1e9f);
  for (int64_t t = 0; t < 700; ++t) std::copy_n(x.data() + t * dim, dim, wide.data() + t * 20 + 2);
  CovarianceSum strided(dim);
  strided.add({.data = wide.data() + 2, .shape = {700, dim}, .stride = {20, 1}});
  EXPECT_EQ(strided.result().matrix, whole.matrix);
  EXPECT_EQ(strided.result().mean, whole.mean);
}

TEST(CovarianceSum, ALargeCommonMeanCostsNoDigits) {
  Vectors x;
  for (int i = 0; i < 1000; ++i) x.push_back(1048576.0f + static_cast<float>(i % 2));
  EXPECT_DOUBLE_EQ(covariance_of(x, 1).matrix[0], 0.25);
}

TEST(CovarianceSum, IsZeroForConstantsAndBeforeAnyRow) {
  EXPECT_EQ(covariance_of(Vectors(24, 0.1f), 8).matrix, std::vector<double>(64, 0.0));
  EXPECT_EQ(CovarianceSum(3).result().matrix, std::vector<double>(9, 0.0));
  CovarianceSum sum(3);
  const Vectors x(8, 0.0f);
  EXPECT_THROW(sum.add(rows_of(x, 4)), std::invalid_argument);
}

TEST(Pca, OfAKnownCase) {
  // Eigenvalues 3 and 1 with vectors (1, 1) and (1, -1) over sqrt(2).
  const std::vector<double> covariance = {2, 1, 1, 2};
  const PcaBasis basis = fit_pca(covariance, 2);
  const float half = std::sqrt(0.5f);
  EXPECT_NEAR(basis.spectrum[0], 3, 1e-6);
  EXPECT_NEAR(basis.spectrum[1], 1, 1e-6);
  EXPECT_NEAR(basis.encode[0], half, 1e-6);
  EXPECT_NEAR(basis.encode[1], half, 1e-6);
  EXPECT_NEAR(std::abs(basis.encode[2]), half, 1e-6);
  EXPECT_NEAR(basis.encode[2], -basis.encode[3], 1e-6);
}

TEST(Pca, TheBasisIsOrthonormalAndItsErrorIsTheTailOfTheSpectrum) {
  for (const int64_t dim : {1, 8, 64}) {
    SCOPED_TRACE(dim);
    const Vectors x = correlated(500, dim, 2);
    const Covariance covariance = covariance_of(x, dim);
    const PcaBasis basis = fit_pca(covariance.matrix, dim);
    EXPECT_LT(distance_from_orthonormal(basis), 1e-6);
    double tail = 0, before = INFINITY;
    for (const float v : basis.spectrum) tail += v;
    const double total = tail;
    EXPECT_TRUE(std::is_sorted(basis.spectrum.rbegin(), basis.spectrum.rend()));
    for (int64_t rank = 0; rank <= dim; ++rank) {
      const double error = error_of(x, covariance.mean, basis, rank, identity(dim));
      EXPECT_NEAR(error, tail, 1e-5 * total) << rank;
      EXPECT_LE(error, before);
      before = error;
      if (rank < dim) tail -= basis.spectrum[rank];
    }
  }
}

TEST(Pca, TheLargestComponentOfEveryVectorIsPositive) {
  const int64_t dim = 16;
  const PcaBasis basis = fit_pca(covariance_of(correlated(300, dim, 3), dim).matrix, dim);
  for (int64_t r = 0; r < dim; ++r) {
    const auto row = std::span(basis.encode).subspan(static_cast<size_t>(r * dim), dim);
    const auto largest = std::max_element(
        row.begin(), row.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
    EXPECT_GT(*largest, 0);
  }
}

TEST(Pca, OfFewVectorsHasAFullBasisAndATailOfZeros) {
  const int64_t dim = 16;
  const PcaBasis few = fit_pca(covariance_of(correlated(4, dim, 4), dim).matrix, dim);
  EXPECT_LT(distance_from_orthonormal(few), 1e-6);
  EXPECT_GT(few.spectrum[2], 1e-4);
  for (size_t r = 3; r < 16; ++r) {
    EXPECT_GE(few.spectrum[r], 0);
    EXPECT_LT(few.spectrum[r], 1e-12 * few.spectrum[0]);
  }
  const PcaBasis constant = fit_pca(std::vector<double>(64, 0.0), 8);
  EXPECT_LT(distance_from_orthonormal(constant), 1e-6);
  EXPECT_EQ(constant.spectrum, Vectors(8, 0.0f));
}

TEST(WeightedPca, WithTheIdentityIsPlainPca) {
  const int64_t dim = 16;
  const Covariance covariance = covariance_of(correlated(400, dim, 5), dim);
  const PcaBasis plain = fit_pca(covariance.matrix, dim);
  for (const auto& weights : {identity(dim), std::vector<double>(256, 0.0)}) {  // 0 counts as I
    const PcaBasis weighted = fit_weighted_pca(covariance.matrix, weights, dim);
    for (size_t i = 0; i < plain.encode.size(); ++i) {  // up to the ridge
      EXPECT_NEAR(weighted.encode[i], plain.encode[i], 2e-4);
      EXPECT_NEAR(weighted.decode[i], plain.decode[i], 2e-4);
    }
    for (size_t r = 0; r < plain.spectrum.size(); ++r) {
      EXPECT_NEAR(weighted.spectrum[r], plain.spectrum[r], 2e-4 * plain.spectrum[0]);
    }
  }
}

TEST(WeightedPca, ErrsLessThanPlainPcaWhereItCosts) {
  const int64_t dim = 16;
  const Vectors x = correlated(400, dim, 6);
  const Covariance covariance = covariance_of(x, dim);
  std::vector<double> weights = covariance_of(correlated(40, dim, 7, 0), dim).matrix;
  double trace = 0;
  for (int64_t i = 0; i < dim; ++i) trace += weights[i * dim + i];
  const PcaBasis plain = fit_pca(covariance.matrix, dim);
  const PcaBasis weighted = fit_weighted_pca(covariance.matrix, weights, dim);
  EXPECT_LT(distance_from_orthonormal(weighted), 1e-4);  // decode is encode's inverse
  std::vector<double> ridged = weights;
  for (int64_t i = 0; i < dim; ++i) ridged[i * dim + i] += kPcaRidge * trace / dim;
  for (const int64_t rank : {0, 1, 4, 8, 15, 16}) {
    double tail = 0;
    for (int64_t r = rank; r < dim; ++r) tail += weighted.spectrum[r];
    const double error = error_of(x, covariance.mean, weighted, rank, ridged);
    EXPECT_NEAR(error, tail, 1e-4 * weighted.spectrum[0]) << rank;
    if (rank == 4 || rank == 8) {
      EXPECT_LT(error, 0.95 * error_of(x, covariance.mean, plain, rank, ridged)) << rank;
    }
  }
}

TEST(WeightedPca, TakesWeightsOfAnyRank) {
  const int64_t dim = 8;
  const Covariance covariance = covariance_of(correlated(100, dim, 8), dim);
  std::vector<double> weights(64);
  weights[0] = 5;  // only channel 0 matters
  const PcaBasis basis = fit_weighted_pca(covariance.matrix, weights, dim);
  EXPECT_GT(basis.spectrum[0], 0.9 * 5 * covariance.matrix[0]);
  for (const auto* values : {&basis.encode, &basis.decode, &basis.spectrum}) {
    for (const float v : *values) EXPECT_TRUE(std::isfinite(v));
  }
}

TEST(Pca, SizesAndNumbersThatDontFitAreRefused) {
  EXPECT_THROW(fit_pca(std::vector<double>(5), 2), std::invalid_argument);
  EXPECT_THROW(fit_pca({}, 0), std::invalid_argument);
  EXPECT_THROW(fit_pca(std::vector<double>(4, NAN), 2), std::invalid_argument);
  EXPECT_THROW(fit_weighted_pca(std::vector<double>(4), std::vector<double>(9), 2),
               std::invalid_argument);
}

TEST(Pca, EnergySharesAreOfTheLeadingComponents) {
  const float spectrum[] = {6, 3, 1, 0}, nothing[] = {0, 0};
  EXPECT_DOUBLE_EQ(energy_share(spectrum, 0), 0);
  EXPECT_DOUBLE_EQ(energy_share(spectrum, 1), 0.6);
  EXPECT_DOUBLE_EQ(energy_share(spectrum, 3), 1);
  EXPECT_DOUBLE_EQ(energy_share(nothing, 1), 1);
}

// E[(q . (x - x'))^2] for queries of second moments M that know nothing of x: tr(M N C N), N = 1 -
// P being what an orthonormal basis of this rank leaves out.
double score_error(const PcaBasis& basis, int64_t rank, std::span<const double> covariance,
                   std::span<const double> moments) {
  const int64_t d = basis.dim;
  const auto product = [&](const std::vector<double>& a, std::span<const double> b) {
    std::vector<double> out(static_cast<size_t>(d * d));
    for (int64_t i = 0; i < d * d * d; ++i) {
      const int64_t row = i / (d * d), column = i / d % d, k = i % d;
      out[row * d + column] += a[row * d + k] * b[k * d + column];
    }
    return out;
  };
  std::vector<double> rest(static_cast<size_t>(d * d));
  for (int64_t i = 0; i < d * d; ++i) {
    rest[i] = i / d == i % d ? 1 : 0;
    for (int64_t r = 0; r < rank; ++r) {
      rest[i] -= double{basis.encode[r * d + i / d]} * basis.encode[r * d + i % d];
    }
  }
  const auto left = product(rest, covariance), lost = product(left, rest);
  double trace = 0;
  for (int64_t i = 0; i < d * d; ++i) trace += lost[i] * moments[i % d * d + i / d];
  return trace;
}

TEST(ScorePca, IsOrthonormalAndLosesLessOfScoresThanPlainPca) {
  const int64_t dim = 16;
  for (const double slope : {0.0, 1.0, 20.0}) {
    const auto keys = covariance_of(correlated(400, dim, 8), dim).matrix;
    auto queries = identity(dim);  // more and more of the channels that keys have little of
    for (int64_t i = 0; i < dim; ++i) queries[i * dim + i] += slope / keys[i * dim + i];
    const PcaBasis plain = fit_pca(keys, dim), basis = fit_score_pca(keys, queries, dim);
    const PcaBasis best = fit_weighted_pca(keys, queries, dim);
    EXPECT_LT(distance_from_orthonormal(basis), 1e-5);
    EXPECT_EQ(basis.encode, basis.decode);
    double tail = 0, gain = 0, variance = 0, all = 0;
    for (const float v : best.spectrum) tail += v;
    for (int64_t rank = 1; rank < dim; ++rank) {
      tail -= best.spectrum[rank - 1];
      const double error = score_error(basis, rank, keys, queries);
      EXPECT_GT(error, 0.98 * tail) << rank;
      gain += std::log(score_error(plain, rank, keys, queries) / error);
    }
    EXPECT_GE(gain, slope > 0 ? 0.1 : -1e-3);
    for (int64_t i = 0; i < dim; ++i) {
      variance += basis.spectrum[i];
      all += keys[i * dim + i];
    }
    EXPECT_NEAR(variance, all, 1e-5 * all);
  }
}

TEST(ScorePca, OfQueriesWithoutADirectionIsPlainPca) {
  const int64_t dim = 8;
  const auto keys = covariance_of(correlated(300, dim, 3), dim).matrix;
  const PcaBasis plain = fit_pca(keys, dim), basis = fit_score_pca(keys, identity(dim), dim);
  for (size_t i = 0; i < plain.encode.size(); ++i) {
    EXPECT_NEAR(basis.encode[i], plain.encode[i], 1e-5);
  }
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(basis.spectrum[i], plain.spectrum[i], 1e-5);
}

}  // namespace
}  // namespace kvquant
