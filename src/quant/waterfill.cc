#include "quant/waterfill.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "base/check.h"
#include "formats/kv_block.h"

namespace kvquant {
namespace {

// Components are made equally large before they are coded, and the range of a token is that of the
// largest of them: about this many standard deviations from end to end.
constexpr double kRange = 5;

// Squared error of a code relative to the variance: that of a step of uniform levels.
double relative_noise(int bits) {
  const double step = kRange / ((1 << bits) - 1);
  return step * step / 12;
}

// Sums over the first 16, 32, ... components, the last group perhaps smaller; [0] is 0.
std::vector<double> sums_of_groups(std::span<const double> energies) {
  std::vector<double> sums = {0};
  for (size_t first = 0; first < energies.size(); first += kBandUnit) {
    const size_t end = std::min(energies.size(), first + kBandUnit);
    double sum = sums.back();
    for (size_t i = first; i < end; ++i) sum += energies[i];
    sums.push_back(sum);
  }
  return sums;
}

}  // namespace

CodeBands choose_bands(const ComponentEnergies& energies, double bits) {
  const auto rank = static_cast<int64_t>(energies.noise.size());
  const std::vector<double> dropped = sums_of_groups(energies.dropped);
  const std::vector<double> noise = sums_of_groups(energies.noise);
  const auto num_groups = static_cast<int64_t>(noise.size()) - 1;
  const auto size_of = [&](int64_t groups) { return std::min(groups * kBandUnit, rank); };
  const double budget = bits * static_cast<double>(rank);
  const auto between = [](const std::vector<double>& sums, int64_t begin, int64_t end) {
    return sums[static_cast<size_t>(end)] - sums[static_cast<size_t>(begin)];
  };
  double least = std::numeric_limits<double>::infinity();
  int64_t best[3] = {};  // groups of at least 8, 4 and 2 bits
  for (int64_t eight = 0; eight <= num_groups; ++eight) {
    for (int64_t four = eight; four <= num_groups; ++four) {
      for (int64_t two = std::max<int64_t>(four, 1); two <= num_groups; ++two) {
        const auto taken =
            static_cast<double>(4 * size_of(eight) + 2 * size_of(four) + 2 * size_of(two));
        const double error = between(noise, 0, eight) * relative_noise(8) +
                             between(noise, eight, four) * relative_noise(4) +
                             between(noise, four, two) * relative_noise(2) +
                             between(dropped, two, num_groups);
        if (taken > budget || error >= least) continue;
        least = error;
        best[0] = eight;
        best[1] = four;
        best[2] = two;
      }
    }
  }
  check_arg(best[2] > 0, fmt::format("wf{}: {} components take at least {} bits in all, 2 for each "
                                     "of {}, more than {} on average",
                                     bits, rank, 2 * size_of(1), size_of(1), bits));
  CodeBands bands;
  int64_t before = 0;
  for (int i = 0; i < 3; ++i) {
    const int64_t end = latent_width(size_of(best[i]));
    bands.channels[i] = static_cast<int32_t>(end - before);
    before = end;
  }
  return bands;
}

}  // namespace kvquant
