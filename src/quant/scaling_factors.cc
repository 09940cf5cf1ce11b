// estimate_scaling_factors of kvquant/codebook.h.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kvquant/codebook.h"

namespace kvquant {
namespace {

using Values = TensorView<const float, 4>;  // [batch, num_heads, seq_len, head_dim]

struct Token {
  int64_t sequence, position;
};

std::vector<Token> real_tokens(const Values& x, const TensorView<const uint8_t, 2>& mask) {
  std::vector<Token> tokens;
  for (int64_t b = 0; b < x.shape[0]; ++b) {
    for (int64_t s = 0; s < x.shape[2]; ++s) {
      if (mask.data == nullptr || mask(b, s) != 0) tokens.push_back({b, s});
    }
  }
  return tokens;
}

void check_finite(const Values& x, int64_t head, Token token) {
  const auto row = x.row(token.sequence, head, token.position);
  for (size_t c = 0; c < row.size(); ++c) {
    if (std::isfinite(row[c])) continue;
    throw std::invalid_argument(fmt::format("estimate_scaling_factors: x[{}, {}, {}, {}] is {}",
                                            token.sequence, head, token.position, c, row[c]));
  }
}

float percentile_of(std::vector<float>& magnitudes, double percent) {
  const double rank = std::ceil(static_cast<double>(magnitudes.size()) * percent / 100);
  const auto at = std::clamp<int64_t>(static_cast<int64_t>(rank) - 1, 0,
                                      static_cast<int64_t>(magnitudes.size()) - 1);
  std::nth_element(magnitudes.begin(), magnitudes.begin() + at, magnitudes.end());
  return magnitudes[at];
}

// Scales [head_dim] of one head.
void percentile_scales(const Values& x, int64_t head, std::span<const Token> tokens, double percent,
                       float* scales) {
  std::vector<float> magnitudes(tokens.size());
  for (int64_t c = 0; c < x.shape[3]; ++c) {
    for (size_t t = 0; t < tokens.size(); ++t) {
      magnitudes[t] = std::fabs(x(tokens[t].sequence, head, tokens[t].position, c));
    }
    scales[c] = percentile_of(magnitudes, percent);
  }
}

void mean_or_max_scales(const Values& x, int64_t head, std::span<const Token> tokens,
                        ScaleRule::Statistic statistic, float* scales) {
  std::vector<double> sums(x.shape[3], 0.0), largest(x.shape[3], 0.0);
  for (const Token& token : tokens) {
    const auto row = x.row(token.sequence, head, token.position);
    for (size_t c = 0; c < row.size(); ++c) {
      const double magnitude = std::fabs(row[c]);
      sums[c] += magnitude;
      largest[c] = std::max(largest[c], magnitude);
    }
  }
  for (size_t c = 0; c < sums.size(); ++c) {
    const double mean = sums[c] / static_cast<double>(tokens.size());
    scales[c] = static_cast<float>(statistic == ScaleRule::Statistic::kMaxAbs ? largest[c] : mean);
  }
}

}  // namespace

std::vector<float> estimate_scaling_factors(TensorView<const float, 4> x,
                                            TensorView<const uint8_t, 2> mask, ScaleRule rule) {
  const bool has_percent = rule.statistic == ScaleRule::Statistic::kPercentile;
  check_arg(
      !has_percent || (rule.percent > 0 && rule.percent <= 100),
      fmt::format("estimate_scaling_factors: percentile {} is not in (0, 100]", rule.percent));
  check_arg(
      mask.data == nullptr || (mask.shape[0] == x.shape[0] && mask.shape[1] == x.shape[2]),
      fmt::format("estimate_scaling_factors: mask [{}, {}] for x [{}, {}, {}, {}]", mask.shape[0],
                  mask.shape[1], x.shape[0], x.shape[1], x.shape[2], x.shape[3]));
  const std::vector<Token> tokens = real_tokens(x, mask);
  check_arg(!tokens.empty(), "estimate_scaling_factors: there is no real token");
  const int64_t num_heads = x.shape[1], head_dim = x.shape[3];
  std::vector<float> scales(num_heads * head_dim);
  if (head_dim == 0) return scales;
  for (int64_t h = 0; h < num_heads; ++h) {
    for (const Token& token : tokens) check_finite(x, h, token);
    float* of_head = scales.data() + h * head_dim;
    if (has_percent) {
      percentile_scales(x, h, tokens, rule.percent, of_head);
    } else {
      mean_or_max_scales(x, h, tokens, rule.statistic, of_head);
    }
  }
  return scales;
}

}  // namespace kvquant
