#include "ops/hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

namespace kvquant {
namespace {

std::vector<float> random_values(int64_t size, unsigned seed) {
  std::mt19937 rng(seed);
  std::student_t_distribution<float> heavy_tailed(3);
  std::vector<float> x(size);
  for (float& value : x) value = heavy_tailed(rng);
  return x;
}

TEST(HadamardReference, EqualsTheMatrix) {
  for (const int64_t n : {8, 16, 64, 256}) {
    const std::vector<float> x = random_values(n, 1);
    std::vector<float> y = x;
    ref::hadamard_rows(y.data(), n, 1, n);
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0, size = 0;
      for (int64_t j = 0; j < n; ++j) {
        sum += (std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? 1.0 : -1.0) * x[j];
        size += std::abs(x[j]);
      }
      const double norm = std::sqrt(static_cast<double>(n));
      EXPECT_NEAR(y[i], sum / norm, 2e-7 * size / norm);
    }
  }
}

TEST(HadamardReference, AnImpulseBecomesConstant) {
  std::vector<float> x(16, 0.0f);
  x[0] = 8;
  ref::hadamard_rows(x.data(), 16, 1, 16);
  EXPECT_EQ(x, std::vector<float>(16, 2.0f));
  ref::hadamard_rows(x.data(), 16, 1, 16);
  EXPECT_EQ(x[0], 8.0f);
  EXPECT_EQ(x[5], 0.0f);
}

TEST(Hadamard, EqualsTheReferenceBitForBit) {
  for (const int64_t head_dim : {8, 16, 32, 64, 128, 256}) {
    for (const int64_t num_rows : {0, 1, 3}) {
      const int64_t stride = head_dim + 5;  // misaligned, and what lies between stays
      std::vector<float> expected = random_values(num_rows * stride + 1, 3), actual = expected;
      hadamard_rows(expected.data() + 1, stride, num_rows, head_dim, Backend::kReference);
      hadamard_rows(actual.data() + 1, stride, num_rows, head_dim, Backend::kSimd);
      EXPECT_EQ(actual, expected) << head_dim;
    }
    std::vector<float> expected = random_values(head_dim * 64, 4), actual = expected;
    hadamard_planar(expected.data(), head_dim, Backend::kReference);
    hadamard_planar(actual.data(), head_dim, Backend::kSimd);
    EXPECT_EQ(actual, expected) << head_dim;
  }
}

TEST(Hadamard, RowsAndColumnsOfATileAreRotatedAlike) {
  const int64_t head_dim = 64;
  std::vector<float> rows = random_values(head_dim * 64, 5), planar(rows.size());
  for (int64_t t = 0; t < 64; ++t) {
    for (int64_t c = 0; c < head_dim; ++c) planar[c * 64 + t] = rows[t * head_dim + c];
  }
  hadamard_rows(rows.data(), head_dim, 64, head_dim);
  hadamard_planar(planar.data(), head_dim);
  for (int64_t t = 0; t < 64; ++t) {
    for (int64_t c = 0; c < head_dim; ++c) EXPECT_EQ(planar[c * 64 + t], rows[t * head_dim + c]);
  }
}

TEST(Hadamard, RefusesWhatIsNoPowerOfTwo) {
  float x[512] = {};
  EXPECT_THROW(hadamard_rows(x, 80, 1, 80), std::invalid_argument);
  EXPECT_THROW(hadamard_planar(x, 4), std::invalid_argument);
  EXPECT_THROW(hadamard_rows(x, 512, 1, 512), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
