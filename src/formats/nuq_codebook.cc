#include "formats/nuq_codebook.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "base/check.h"

namespace kvquant {
namespace {

// Of a value that is uniform within its cell, [-1, 1] being cut at the midpoints. Cells are
// weighted by a normal distribution that ends at 2.5 standard deviations.
float expected_noise(const NuqCodebook& book) {
  const auto below = [](double y) { return std::erf(y * (2.5 / std::numbers::sqrt2)); };
  double sum = 0;
  for (int i = 0; i < book.num_levels; ++i) {
    const double low = i == 0 ? -1 : book.midpoints[i - 1];
    const double high = i == book.num_levels - 1 ? 1 : book.midpoints[i];
    const double a = low - book.levels[i], b = high - book.levels[i];
    sum += (below(high) - below(low)) * (a * a + a * b + b * b) / 3;
  }
  return static_cast<float>(sum / (below(1) - below(-1)));
}

}  // namespace

NuqCodebook make_codebook(std::span<const float> levels) {
  NuqCodebook book;
  for (int bits = kMinCodeBits; bits <= kMaxCodeBits; ++bits) {
    if (levels.size() == size_t{1} << bits) book.bits = bits;
  }
  check_arg(book.bits != 0, fmt::format("codebook: {} levels are not 4, 8 or 16", levels.size()));
  book.num_levels = static_cast<int>(levels.size());
  for (size_t i = 0; i < levels.size(); ++i) {
    check_arg(levels[i] >= -1 && levels[i] <= 1,
              fmt::format("codebook: level {} is {}, not in [-1, 1]", i, levels[i]));
    check_arg(i == 0 || levels[i - 1] < levels[i],
              fmt::format("codebook: level {} does not ascend", i));
    book.levels[i] = levels[i];
    if (i > 0) book.midpoints[i - 1] = 0.5f * (levels[i - 1] + levels[i]);
  }
  book.noise = expected_noise(book);
  return book;
}

NuqCodebook make_uniform_codebook(int bits) {
  check_arg(bits == 2 || bits == 4 || bits == kByteCodeBits,
            fmt::format("codebook: {} uniform bits are not 2, 4 or 8", bits));
  if (bits == kByteCodeBits) {
    NuqCodebook book;
    book.bits = bits;
    book.num_levels = 256;
    book.noise = 1 / (127.5f * 127.5f * 12);
    return book;
  }
  const int last = (1 << bits) - 1;
  std::vector<float> levels;
  for (int i = 0; i <= last; ++i) {
    levels.push_back(static_cast<float>(2 * i - last) / static_cast<float>(last));
  }
  return make_codebook(levels);
}

int code_of(const NuqCodebook& book, float y) noexcept {
  if (book.bits == kByteCodeBits) {
    const float steps = (y + 1) * 127.5f - 0.5f;
    return static_cast<int>(std::clamp(std::ceil(steps), 0.0f, 255.0f));
  }
  int code = 0;
  while (code < book.num_levels - 1 && book.midpoints[code] < y) ++code;
  return code;
}

float level_of(const NuqCodebook& book, int code) noexcept {
  if (book.bits != kByteCodeBits) return book.levels[code];
  return (static_cast<float>(code) - 127.5f) * (1 / 127.5f);
}

}  // namespace kvquant
