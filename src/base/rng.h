// Counter-based random numbers: number i of a stream is a function of (seed, stream, i), so any
// part can be made in any order by any thread. The mixing function is SplitMix64's (Steele et al.,
// OOPSLA 2014). Normals use only IEEE additions, products, divisions and square roots: the same
// bits on every machine. Not for secrets.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

namespace kvquant {

constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

class CounterRng {
 public:
  explicit CounterRng(uint64_t seed, uint64_t stream = 0)
      : key_(mix64(mix64(seed + kGamma) ^ mix64(stream * kGamma + 1))) {}

  uint64_t bits(uint64_t i) const { return mix64(key_ + (i + 1) * kGamma); }

  // In [0, 1), a multiple of 2^-53.
  double uniform(uint64_t i) const { return static_cast<double>(bits(i) >> 11) * 0x1p-53; }

  // In [0, n), n > 0. The bias is below n / 2^32: fine for n up to millions.
  uint32_t below(uint64_t i, uint32_t n) const {
    return static_cast<uint32_t>((bits(i) >> 32) * n >> 32);
  }

  // Two independent standard normals (Box-Muller); |x| < 6.8.
  std::pair<float, float> normals(uint64_t i) const;

 private:
  static constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;
  uint64_t key_;
};

namespace rng_detail {

// ln x for x = k 2^-32, 0 < k <= 2^32. With m in [1, 2) and s = (m - 1) / (m + 1) <= 1/3:
// ln m = 2 (s + s^3/3 + s^5/5 + ...); the first left out is below 3e-7.
inline float log_of_fraction(uint64_t k) {
  const int exponent = 63 - __builtin_clzll(k);
  const auto m = static_cast<float>(static_cast<double>(k) / static_cast<double>(1ull << exponent));
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  const float series =
      1.0f + z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9 + z * (1.0f / 11)))));
  return static_cast<float>(exponent - 32) * 0.693147181f + 2.0f * s * series;
}

}  // namespace rng_detail

inline std::pair<float, float> CounterRng::normals(uint64_t i) const {
  const uint64_t random = bits(i);
  const float radius = std::sqrt(-2.0f * rng_detail::log_of_fraction((random >> 32) + 1));
  // An angle in [-pi/4, pi/4] by Taylor, then one of four quarter turns.
  const float angle =
      (static_cast<float>(random >> 2 & 0x3FFFFFFF) * 0x1p-30f - 0.5f) * 1.570796327f;
  const float z = angle * angle;
  const float sine = angle * (1.0f + z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040))));
  const float cosine =
      1.0f + z * (-0.5f + z * (1.0f / 24 + z * (-1.0f / 720 + z * (1.0f / 40320))));
  const float a = radius * cosine, b = radius * sine;
  switch (random & 3) {
    case 0: return {a, b};
    case 1: return {-b, a};
    case 2: return {-a, -b};
    default: return {b, -a};
  }
}

}  // namespace kvquant
