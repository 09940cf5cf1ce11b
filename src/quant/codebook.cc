#include "quant/codebook.h"

#include <fmt/format.h>

#include <cmath>

#include "base/check.h"
#include "formats/codec_table.h"
#include "kvquant/spec.h"

namespace kvquant {
namespace {

constexpr double kClip = 2.5758293035489004;  // Q(0.995): 0.5% on either end are outliers

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// By bisection to the last bit: called a few times per process.
double normal_quantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 100; ++i) {
    const double middle = 0.5 * (low + high);
    (normal_cdf(middle) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

}  // namespace

int get_nuq_bitwidth(std::string_view name) {
  int bits = 0;
  if (name.starts_with("nuq")) {
    const CacheSpec spec = parse_spec(name);
    const bool is_one_codec = name.find(',') == std::string_view::npos;
    if (is_one_codec && spec.key.transforms.empty()) bits = nuq_bits(spec.key.quantizer);
  }
  check_arg(bits != 0, fmt::format("codebook '{}': expected nuq2, nuq3 or nuq4", name));
  return bits;
}

int get_num_levels(std::string_view name) { return 1 << get_nuq_bitwidth(name); }

std::vector<float> create_heuristic_codebook(std::string_view name) {
  const int num_levels = get_num_levels(name);
  const double width = kClip / std::sqrt(3.0);
  const double below = normal_cdf(-width);
  std::vector<float> levels(num_levels);
  for (int i = 0; i < num_levels / 2; ++i) {
    const double share = (i + 0.5) / num_levels;
    levels[i] = static_cast<float>(normal_quantile(below + (1 - 2 * below) * share) / width);
    levels[num_levels - 1 - i] = -levels[i];
  }
  return levels;
}

}  // namespace kvquant
