#include "quant/rounding_feedback.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

namespace kvquant {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Channels by what an error of one step costs, dearest first; ties by index.
std::vector<int64_t> dearest_first(const Matrix& metric, std::span<const float> scales) {
  std::vector<double> cost(scales.size());
  for (size_t c = 0; c < scales.size(); ++c) {
    const auto at = static_cast<int64_t>(c);
    cost[c] = metric(at, at) * scales[c] * scales[c];
  }
  std::vector<int64_t> order(scales.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return cost[static_cast<size_t>(a)] > cost[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

std::vector<double> lag_weights(int64_t seq_len) {
  std::vector<double> weights(static_cast<size_t>(seq_len));
  double total = 0;
  for (int64_t lag = 0; lag < seq_len; ++lag) {
    const double weight = static_cast<double>(seq_len - lag) / static_cast<double>(lag + 1);
    weights[static_cast<size_t>(lag)] = weight;
    total += weight;
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

LagMetric::LagMetric(std::span<const double> angles, std::span<const double> weights)
    : half_(static_cast<int64_t>(angles.size())) {
  const auto size = angles.size() * angles.size();
  for (auto* table : {&cos_difference_, &sin_difference_, &cos_sum_, &sin_sum_}) {
    table->assign(size, 0.0);
  }
  for (size_t i = 0; i < angles.size(); ++i) {
    for (size_t j = 0; j < angles.size(); ++j) {
      const size_t at = i * angles.size() + j;
      for (size_t lag = 0; lag < weights.size(); ++lag) {
        const double difference = static_cast<double>(lag) * (angles[i] - angles[j]);
        const double sum = static_cast<double>(lag) * (angles[i] + angles[j]);
        cos_difference_[at] += weights[lag] * std::cos(difference);
        sin_difference_[at] += weights[lag] * std::sin(difference);
        cos_sum_[at] += weights[lag] * std::cos(sum);
        sin_sum_[at] += weights[lag] * std::sin(sum);
      }
    }
  }
}

// With channels (c, c + D/2) as the complex number z_c = q_c + i q_{c + D/2}, a rotation by d
// positions multiplies z_c by exp(i d angle_c): E[z_i conj(z_j)] is averaged with the difference of
// two angles, E[z_i z_j] with their sum.
std::vector<double> LagMetric::operator()(std::span<const double> gram) const {
  const int64_t dim = 2 * half_;
  assert(static_cast<int64_t>(gram.size()) == dim * dim);
  std::vector<double> out(gram.size());
  const auto g = [&](int64_t i, int64_t j) { return gram[static_cast<size_t>(i * dim + j)]; };
  const auto m = [&](int64_t i, int64_t j) -> double& {
    return out[static_cast<size_t>(i * dim + j)];
  };
  for (int64_t i = 0; i < half_; ++i) {
    for (int64_t j = 0; j < half_; ++j) {
      const auto at = static_cast<size_t>(i * half_ + j);
      const double aa = g(i, j), bb = g(i + half_, j + half_);
      const double ba = g(i + half_, j), ab = g(i, j + half_);
      // Products of z_i with conj(z_j) and with z_j, before and after the rotation.
      const double conj_re = aa + bb, conj_im = ba - ab, same_re = aa - bb, same_im = ba + ab;
      const double cr = conj_re * cos_difference_[at] - conj_im * sin_difference_[at];
      const double ci = conj_re * sin_difference_[at] + conj_im * cos_difference_[at];
      const double sr = same_re * cos_sum_[at] - same_im * sin_sum_[at];
      const double si = same_re * sin_sum_[at] + same_im * cos_sum_[at];
      m(i, j) = (cr + sr) / 2;
      m(i + half_, j + half_) = (cr - sr) / 2;
      m(i + half_, j) = (si + ci) / 2;
      m(i, j + half_) = (si - ci) / 2;
    }
  }
  return out;
}

RoundingSteps fit_rounding_steps(std::span<const double> metric, std::span<const float> scales) {
  const auto dim = static_cast<int64_t>(scales.size());
  assert(dim <= 256 && static_cast<int64_t>(metric.size()) == dim * dim);
  const Matrix m = Eigen::Map<const Matrix>(metric.data(), dim, dim);
  const std::vector<int64_t> order = dearest_first(m, scales);
  RoundingSteps steps{std::vector<uint8_t>(scales.size()),
                      std::vector<float>(static_cast<size_t>(dim * dim)),
                      std::vector<float>(scales.size())};
  // Row and column a of the factored matrix are the channel of step dim - 1 - a: L' e is the error
  // of a channel plus a combination of those with larger a, which are rounded before it.
  Matrix factored(dim, dim);
  const double least =
      1e-9 * std::max(m.diagonal().maxCoeff(), 1e-30);  // a channel without queries
  for (int64_t a = 0; a < dim; ++a) {
    for (int64_t b = 0; b < dim; ++b) {
      const int64_t row = order[static_cast<size_t>(dim - 1 - a)];
      const int64_t column = order[static_cast<size_t>(dim - 1 - b)];
      factored(a, b) = m(row, column) + (a == b ? kFeedbackDamping * m(row, row) + least : 0.0);
    }
  }
  const Eigen::LLT<Matrix> llt(factored);
  assert(llt.info() == Eigen::Success);
  const Matrix lower = llt.matrixL();
  for (int64_t i = 0; i < dim; ++i) {
    const auto step = static_cast<size_t>(i);
    steps.order[step] = static_cast<uint8_t>(order[step]);
    const int64_t a = dim - 1 - i;
    steps.weights[steps.order[step]] = static_cast<float>(lower(a, a) * lower(a, a));
    for (int64_t j = 0; j < i; ++j) {
      steps.coefficients[static_cast<size_t>(i * dim + j)] =
          static_cast<float>(lower(dim - 1 - j, a) / lower(a, a));
    }
  }
  return steps;
}

}  // namespace kvquant
