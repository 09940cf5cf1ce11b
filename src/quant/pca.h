// Principal components of the vectors of one head: covariance summed in double, a full orthonormal
// basis by descending variance, and its variant that minimises the error after a linear map.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvquant/tensor_view.h"

namespace kvquant {

// Centred second moments: E[(x - mean)(x - mean)^T].
struct Covariance {
  int64_t count = 0;
  std::vector<double> mean;    // [dim]
  std::vector<double> matrix;  // [dim, dim], symmetric
};

// Sums vectors; rows added in the same order and parts give the same bits. The sums are relative to
// the first vector, so that a large common mean costs no digits.
class CovarianceSum {
 public:
  explicit CovarianceSum(int64_t dim);
  void add(TensorView<const float, 2> rows);  // [n, dim]
  Covariance result() const;                  // zeros before any row
  // Sum of x x^T, not centred, [dim, dim].
  std::vector<double> sum_of_products() const;
  int64_t count() const { return count_; }

 private:
  int64_t dim_;
  int64_t count_ = 0;
  std::vector<double> origin_;   // [dim], the first vector
  std::vector<double> sum_;      // [dim], of x - origin
  std::vector<double> moments_;  // [dim, dim], of x - origin, lower triangle
};

// x = mean + sum_r z_r decode_r with z_r = encode_r . (x - mean). The first R rows of both are the
// best basis of rank R: the mean squared error (weighted: of the mapped error) is the sum of
// spectrum[R..].
struct PcaBasis {
  int64_t dim = 0;
  std::vector<float> encode;    // [dim, dim], component by component
  std::vector<float> decode;    // the same
  std::vector<float> spectrum;  // [dim], descending, not negative
};

// Orthonormal: encode equals decode. The component with the largest magnitude (the first of them)
// of every vector is positive. Throws std::invalid_argument when sizes don't fit.
PcaBasis fit_pca(std::span<const double> covariance, int64_t dim);

// Minimises E[(x - x')^T M (x - x')] for a symmetric positive semidefinite M [dim, dim] (pcaw: the
// sum of W_o^T W_o over the query heads of a group). Eigenvectors U of M^1/2 C M^1/2: encode = U^T
// M^1/2, decode = M^-1/2 U. M is regularised: kPcaRidge times its mean eigenvalue is added to every
// eigenvalue; M = 0 counts as the identity.
inline constexpr double kPcaRidge = 1e-4;
PcaBasis fit_weighted_pca(std::span<const double> covariance, std::span<const double> weights,
                          int64_t dim);

// Keeps inner products x . q with vectors q of second moments M = E[q q^T]: an orthonormal basis
// for which tr(M N C N) is small, N = 1 - P_R being what the first R rows leave out: of fit_pca and
// of what the rows of encode or of decode of fit_weighted_pca span (which are best, but not
// orthogonal), the one that is best over all ranks, by the geometric mean. The spectrum is the
// variance along each component, in no order.
PcaBasis fit_score_pca(std::span<const double> covariance, std::span<const double> query_moments,
                       int64_t dim);

// Of a spectrum: what its first `rank` components have of it; 1 when it is all zeros.
double energy_share(std::span<const float> spectrum, int64_t rank);

}  // namespace kvquant
