#include "quant/pca.h"

#define EIGEN_DONT_PARALLELIZE  // callers run heads in parallel; one head is one thread's work
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr int64_t kBlockRows = 256;  // rows converted to double at once: fits L2 for head_dim 256

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;
using Map = Eigen::Map<Matrix>;

// The entry of largest magnitude, the first of them, becomes positive.
template <class Vector>
void fix_sign(Vector&& v) {
  Eigen::Index largest = 0;
  for (Eigen::Index i = 1; i < v.size(); ++i) {
    if (std::abs(v(i)) > std::abs(v(largest))) largest = i;
  }
  if (v(largest) < 0) v = -v;
}

struct Eigenpairs {
  Eigen::VectorXd values;  // descending
  Matrix vectors;          // rows
};

Eigenpairs eigenpairs_of(const Matrix& symmetric) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(symmetric);
  check_arg(solver.info() == Eigen::Success, "pca: the eigenvalues did not converge");
  Eigenpairs out;
  out.values = solver.eigenvalues().reverse();
  out.vectors = solver.eigenvectors().rowwise().reverse().transpose();
  for (Eigen::Index r = 0; r < out.vectors.rows(); ++r) fix_sign(out.vectors.row(r));
  return out;
}

void check_matrix(std::span<const double> matrix, int64_t dim, const char* name) {
  check_arg(dim > 0 && static_cast<int64_t>(matrix.size()) == dim * dim,
            std::string("pca: ") + name + " has " + std::to_string(matrix.size()) +
                " elements, not " + std::to_string(dim) + " x " + std::to_string(dim));
  check_arg(std::all_of(matrix.begin(), matrix.end(), [](double x) { return std::isfinite(x); }),
            std::string("pca: ") + name + " is not finite");
}

std::vector<float> to_floats(const Matrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.size()));
  std::transform(matrix.data(), matrix.data() + matrix.size(), out.begin(),
                 [](double x) { return static_cast<float>(x); });
  return out;
}

std::vector<float> spectrum_of(const Eigen::VectorXd& values) {
  std::vector<float> out(static_cast<size_t>(values.size()));
  for (size_t i = 0; i < out.size(); ++i) {  // rounding may leave tiny negative ones
    out[i] = static_cast<float>(std::max(values(static_cast<Eigen::Index>(i)), 0.0));
  }
  return out;
}

// Gram and Schmidt, in the order of the rows.
Matrix orthonormal_rows(const std::vector<float>& rows, int64_t dim) {
  Matrix out(dim, dim);
  std::copy(rows.begin(), rows.end(), out.data());
  for (int64_t r = 0; r < dim; ++r) {
    for (int pass = 0; pass < 2 && r > 0; ++pass) {  // twice for what rounding leaves
      out.row(r) -= (out.row(r) * out.topRows(r).transpose()).eval() * out.topRows(r);
    }
    out.row(r).normalize();
  }
  return out;
}

// Sum over all ranks of the logarithm of what scores lose, see fit_score_pca.
double log_score_errors(const Matrix& basis, const Matrix& keys, const Matrix& queries) {
  const Matrix c = basis * keys * basis.transpose(), m = basis * queries * basis.transpose();
  const Matrix products = c.cwiseProduct(m);
  const double least = 1e-12 * std::abs(products.sum()) + 1e-300;
  double tail = 0, sum = 0;
  for (Eigen::Index r = basis.rows() - 1; r > 0; --r) {
    tail += products(r, r) + 2 * products.row(r).tail(basis.rows() - 1 - r).sum();
    sum += std::log(std::max(tail, least));
  }
  return sum;
}

}  // namespace

CovarianceSum::CovarianceSum(int64_t dim)
    : dim_(dim),
      origin_(static_cast<size_t>(dim)),
      sum_(static_cast<size_t>(dim)),
      moments_(static_cast<size_t>(dim * dim)) {}

void CovarianceSum::add(TensorView<const float, 2> rows) {
  check_arg(rows.shape[1] == dim_, "covariance: rows of " + std::to_string(rows.shape[1]) +
                                       " channels, not " + std::to_string(dim_));
  if (rows.shape[0] == 0) return;
  if (count_ == 0) std::copy_n(&rows(0, 0), dim_, origin_.begin());
  Matrix block(std::min(kBlockRows, rows.shape[0]), dim_);
  Map moments(moments_.data(), dim_, dim_);
  Eigen::Map<Eigen::RowVectorXd> sum(sum_.data(), dim_);
  for (int64_t begin = 0; begin < rows.shape[0]; begin += kBlockRows) {
    const int64_t size = std::min(kBlockRows, rows.shape[0] - begin);
    for (int64_t t = 0; t < size; ++t) {
      const float* row = &rows(begin + t, 0);
      for (int64_t c = 0; c < dim_; ++c) block(t, c) = double{row[c]} - origin_[c];
    }
    const auto used = block.topRows(size);
    sum += used.colwise().sum();
    moments.selfadjointView<Eigen::Lower>().rankUpdate(used.transpose());
  }
  count_ += rows.shape[0];
}

Covariance CovarianceSum::result() const {
  Covariance out{.count = count_, .mean = origin_, .matrix = moments_};
  if (count_ == 0) return out;
  const auto n = static_cast<double>(count_);
  for (int64_t i = 0; i < dim_; ++i) {
    out.mean[i] += sum_[i] / n;
    for (int64_t j = 0; j <= i; ++j) {
      const double value = (moments_[i * dim_ + j] - sum_[i] * sum_[j] / n) / n;
      out.matrix[i * dim_ + j] = out.matrix[j * dim_ + i] = value;
    }
  }
  return out;
}

std::vector<double> CovarianceSum::sum_of_products() const {
  std::vector<double> out(moments_.size());
  for (int64_t i = 0; i < dim_; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      out[i * dim_ + j] = out[j * dim_ + i] = moments_[i * dim_ + j] + origin_[i] * sum_[j] +
                                              sum_[i] * origin_[j] +
                                              static_cast<double>(count_) * origin_[i] * origin_[j];
    }
  }
  return out;
}

PcaBasis fit_pca(std::span<const double> covariance, int64_t dim) {
  check_matrix(covariance, dim, "the covariance");
  const Eigenpairs pairs = eigenpairs_of(ConstMap(covariance.data(), dim, dim));
  const std::vector<float> vectors = to_floats(pairs.vectors);
  return {.dim = dim, .encode = vectors, .decode = vectors, .spectrum = spectrum_of(pairs.values)};
}

PcaBasis fit_weighted_pca(std::span<const double> covariance, std::span<const double> weights,
                          int64_t dim) {
  check_matrix(covariance, dim, "the covariance");
  check_matrix(weights, dim, "the weight matrix");
  const Eigenpairs of_weights = eigenpairs_of(ConstMap(weights.data(), dim, dim));
  Eigen::VectorXd values = of_weights.values.cwiseMax(0.0);
  const double mean = values.mean();
  if (mean > 0) {
    values.array() += kPcaRidge * mean;
  } else {
    values.setOnes();
  }
  const Eigen::VectorXd roots = values.cwiseSqrt();
  const Matrix& q = of_weights.vectors;
  const Matrix root = q.transpose() * roots.asDiagonal() * q;  // M^1/2
  const Matrix inverse = q.transpose() * roots.cwiseInverse().asDiagonal() * q;
  const Matrix mapped = root * ConstMap(covariance.data(), dim, dim) * root;
  const Eigenpairs pairs = eigenpairs_of(0.5 * (mapped + mapped.transpose()));
  return {.dim = dim,
          .encode = to_floats(pairs.vectors * root),
          .decode = to_floats(pairs.vectors * inverse),
          .spectrum = spectrum_of(pairs.values)};
}

PcaBasis fit_score_pca(std::span<const double> covariance, std::span<const double> query_moments,
                       int64_t dim) {
  const PcaBasis weighted = fit_weighted_pca(covariance, query_moments, dim);
  const ConstMap keys(covariance.data(), dim, dim), queries(query_moments.data(), dim, dim);
  Matrix best = eigenpairs_of(keys).vectors;
  double least = log_score_errors(best, keys, queries);
  for (const auto* rows : {&weighted.encode, &weighted.decode}) {
    const Matrix basis = orthonormal_rows(*rows, dim);
    const double here = log_score_errors(basis, keys, queries);
    if (here >= least) continue;
    best = basis;
    least = here;
  }
  const std::vector<float> vectors = to_floats(best);
  return {.dim = dim,
          .encode = vectors,
          .decode = vectors,
          .spectrum = spectrum_of((best * keys).cwiseProduct(best).rowwise().sum())};
}

double energy_share(std::span<const float> spectrum, int64_t rank) {
  const double all = std::accumulate(spectrum.begin(), spectrum.end(), 0.0);
  const double kept = std::accumulate(spectrum.begin(), spectrum.begin() + rank, 0.0);
  return all > 0 ? kept / all : 1;
}

}  // namespace kvquant
