#include "ops/rope_scaling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr double kMaxFactor = 1e6;

// Of a model of one theta, before all scaling but the divisors.
std::vector<double> plain_frequencies(int64_t head_dim, double theta,
                                      const std::vector<double>& divisors) {
  std::vector<double> out(static_cast<size_t>(head_dim / 2));
  for (size_t c = 0; c < out.size(); ++c) {
    out[c] = std::pow(theta, -2.0 * static_cast<double>(c) / static_cast<double>(head_dim));
    if (!divisors.empty()) out[c] /= divisors[c];
  }
  return out;
}

double dynamic_theta(double theta, const RopeScaling& scaling, int64_t head_dim, int64_t context) {
  const auto original = static_cast<double>(scaling.original_context);
  const double length = std::max(original, static_cast<double>(context));
  const double stretch = scaling.factor * length / original - (scaling.factor - 1);
  const auto dim = static_cast<double>(head_dim);
  return theta * std::pow(stretch, dim / (dim - 2));
}

double llama3_frequency(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double waves = static_cast<double>(scaling.original_context) / wavelength;
  if (waves < scaling.low_freq_factor) return frequency / scaling.factor;
  if (waves > scaling.high_freq_factor) return frequency;
  const double kept =
      (waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return frequency * (kept + (1 - kept) / scaling.factor);
}

// Yarn's blend: pairs up to begin keep their frequency, those from end on are stretched.
struct YarnRange {
  double begin, end;
};

YarnRange yarn_range(const RopeScaling& scaling, double theta, int64_t head_dim) {
  const auto dim = static_cast<double>(head_dim);
  // The pair, a fraction, that makes so many turns within the original context.
  const auto pair_of = [&](double turns) {
    const double wavelength = static_cast<double>(scaling.original_context) / turns;
    return dim * std::log(wavelength / (2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  YarnRange range{pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)};
  if (scaling.truncate) range = {std::floor(range.begin), std::ceil(range.end)};
  range = {std::max(range.begin, 0.0), std::min(range.end, dim - 1)};
  if (range.begin == range.end) range.end += 0.001;
  return range;
}

}  // namespace

const char* rope_scaling_name(RopeScalingType type) {
  switch (type) {
    case RopeScalingType::kNone: return "none";
    case RopeScalingType::kLinear: return "linear";
    case RopeScalingType::kDynamic: return "dynamic";
    case RopeScalingType::kLlama3: return "llama3";
    case RopeScalingType::kYarn: return "yarn";
  }
  return "";
}

double yarn_attention_factor(double factor, double mscale, double mscale_all_dim) {
  const auto of = [&](double scale) {
    return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1;
  };
  return mscale != 0 && mscale_all_dim != 0 ? of(mscale) / of(mscale_all_dim) : of(1);
}

std::string rope_scaling_fault(const RopeScaling& scaling, double theta, int64_t head_dim) {
  using Type = RopeScalingType;
  const Type type = scaling.type;
  if (!(theta > 0) || !std::isfinite(theta)) {
    return fmt::format("theta {} is not above 0 and finite", theta);
  }
  if (!(1 <= scaling.factor && scaling.factor <= kMaxFactor)) {
    return fmt::format("factor {} is not in [1, {}]", scaling.factor, kMaxFactor);
  }
  const bool has_original = type == Type::kDynamic || type == Type::kLlama3 || type == Type::kYarn;
  if (has_original &&
      (scaling.original_context < 1 || scaling.original_context > int64_t{1} << 30)) {
    return fmt::format("original_max_position_embeddings {} is not in [1, 2^30]",
                       scaling.original_context);
  }
  if (type == Type::kDynamic && head_dim <= 2)
    return fmt::format("head_dim {} is not above 2", head_dim);
  if (type == Type::kLlama3 &&
      !(0 < scaling.low_freq_factor && scaling.low_freq_factor < scaling.high_freq_factor &&
        std::isfinite(scaling.high_freq_factor))) {
    return fmt::format("low_freq_factor {} and high_freq_factor {} are not above 0 and rising",
                       scaling.low_freq_factor, scaling.high_freq_factor);
  }
  if (type == Type::kYarn) {
    if (theta <= 1) return fmt::format("theta {} is not above 1", theta);
    if (!(0 < scaling.beta_slow && scaling.beta_slow <= scaling.beta_fast &&
          std::isfinite(scaling.beta_fast))) {
      return fmt::format("beta_fast {} and beta_slow {} are not above 0 and falling",
                         scaling.beta_fast, scaling.beta_slow);
    }
  }
  if (!(1e-3 <= scaling.attention_factor && scaling.attention_factor <= 1e3)) {
    return fmt::format("attention_factor {} is not in [0.001, 1000]", scaling.attention_factor);
  }
  const auto& divisors = scaling.divisors;
  if (!divisors.empty() && static_cast<int64_t>(divisors.size()) != head_dim / 2) {
    return fmt::format("{} divisors of frequencies, not {}", divisors.size(), head_dim / 2);
  }
  for (const double divisor : divisors) {
    if (!(1e-6 <= divisor && divisor <= 1e6)) {
      return fmt::format("the divisor {} of a frequency is not in [1e-6, 1e6]", divisor);
    }
  }
  return "";
}

std::vector<double> rope_frequencies(int64_t head_dim, double theta, const RopeScaling& scaling,
                                     int64_t context) {
  check_arg(head_dim > 0 && head_dim % 2 == 0,
            fmt::format("rope: head_dim must be even and positive, not {}", head_dim));
  const std::string fault = rope_scaling_fault(scaling, theta, head_dim);
  check_arg(fault.empty(), "rope: " + fault);
  const bool is_dynamic = scaling.type == RopeScalingType::kDynamic;
  const double base = is_dynamic ? dynamic_theta(theta, scaling, head_dim, context) : theta;
  std::vector<double> out = plain_frequencies(head_dim, base, scaling.divisors);
  switch (scaling.type) {
    case RopeScalingType::kNone:
    case RopeScalingType::kDynamic: break;
    case RopeScalingType::kLinear:
      for (double& frequency : out) frequency /= scaling.factor;
      break;
    case RopeScalingType::kLlama3:
      for (double& frequency : out) frequency = llama3_frequency(frequency, scaling);
      break;
    case RopeScalingType::kYarn: {
      const auto [begin, end] = yarn_range(scaling, theta, head_dim);
      for (size_t c = 0; c < out.size(); ++c) {
        const double at = (static_cast<double>(c) - begin) / (end - begin);
        const double stretched = std::clamp(at, 0.0, 1.0);
        out[c] *= stretched / scaling.factor + (1 - stretched);
      }
      break;
    }
  }
  return out;
}

}  // namespace kvquant
