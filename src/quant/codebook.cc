#include "kvquant/codebook.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "base/check.h"
#include "formats/codec_table.h"
#include "formats/nuq_codebook.h"
#include "kvquant/spec.h"
#include "quant/normal.h"

namespace kvquant {
namespace {

constexpr double kClip = 2.5758293035489004;  // Q(0.995): 0.5% on either end are outliers

std::vector<float> heuristic_levels(int num_levels) {
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
  return heuristic_levels(get_num_levels(name));
}

std::vector<float> get_cached_codebook(std::string_view name) {
  static const std::array<std::vector<float>, kMaxCodeBits - kMinCodeBits + 1> kBooks = [] {
    std::array<std::vector<float>, kMaxCodeBits - kMinCodeBits + 1> books;
    for (int bits = kMinCodeBits; bits <= kMaxCodeBits; ++bits) {
      books[bits - kMinCodeBits] = heuristic_levels(1 << bits);
    }
    return books;
  }();
  return kBooks[get_nuq_bitwidth(name) - kMinCodeBits];
}

void quantize_to_nuq(std::span<const float> x, std::span<const float> codebook,
                     std::span<uint8_t> codes) {
  check_arg(x.size() == codes.size(),
            fmt::format("quantize_to_nuq: {} codes for {} values", codes.size(), x.size()));
  const NuqCodebook book = make_codebook(codebook);
  for (size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i])) {
      throw std::invalid_argument(fmt::format("quantize_to_nuq: x[{}] is {}", i, x[i]));
    }
    int code = 0;
    for (int m = 0; m < book.num_levels - 1; ++m) code += book.midpoints[m] < x[i] ? 1 : 0;
    codes[i] = static_cast<uint8_t>(code);
  }
}

void dequantize_from_nuq(std::span<const uint8_t> codes, std::span<const float> codebook,
                         std::span<float> out) {
  check_arg(codes.size() == out.size(),
            fmt::format("dequantize_from_nuq: {} values for {} codes", out.size(), codes.size()));
  const NuqCodebook book = make_codebook(codebook);
  for (size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] >= book.num_levels) {
      throw std::invalid_argument(fmt::format("dequantize_from_nuq: codes[{}] is {}, not below {}",
                                              i, codes[i], book.num_levels));
    }
    out[i] = book.levels[codes[i]];
  }
}

}  // namespace kvquant
