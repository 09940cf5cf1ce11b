#include "quant/codebook_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "base/rng.h"
#include "quant/codebook_fit.h"
#include "quant/normal.h"

namespace kvquant {
namespace {

constexpr int kMaxIterations = 200;

struct NamedMethod {
  CodebookMethod method;
  std::string_view name;
};
constexpr std::array<NamedMethod, 5> kMethods = {{{CodebookMethod::kExact, "exact"},
                                                  {CodebookMethod::kLloyd, "lloyd"},
                                                  {CodebookMethod::kNormalFloat, "normal-float"},
                                                  {CodebookMethod::kUniform, "uniform"},
                                                  {CodebookMethod::kHeuristic, "heuristic"}}};

double weight_at(const FitData& data, size_t i) {
  return data.weights.empty() ? 1.0 : data.weights[i];
}

double value_at(const FitData& data, size_t i) { return std::clamp(data.values[i], -1.0f, 1.0f); }

// Index of the nearest of ascending levels, ties to the lower.
size_t nearest(std::span<const double> levels, double x) {
  size_t index = 0;
  for (size_t l = 1; l < levels.size(); ++l) index += 0.5 * (levels[l - 1] + levels[l]) < x ? 1 : 0;
  return index;
}

std::vector<double> quantile_starts(const FitData& data, int num_levels) {
  std::vector<size_t> order(data.values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return data.values[a] < data.values[b] || (data.values[a] == data.values[b] && a < b);
  });
  double total = 0, below = 0;
  for (size_t i = 0; i < order.size(); ++i) total += weight_at(data, i);
  std::vector<double> levels;
  for (const size_t i : order) {
    below += weight_at(data, i);
    while (levels.size() < static_cast<size_t>(num_levels) &&
           below >= total * (static_cast<double>(levels.size()) + 0.5) / num_levels) {
      levels.push_back(value_at(data, i));
    }
  }
  return levels;
}

// The first index at which the running sum of `mass` passes `sought`, else the last with mass.
size_t draw(std::span<const double> mass, double sought) {
  double sum = 0;
  size_t drawn = 0;
  for (size_t i = 0; i < mass.size(); ++i) {
    if (mass[i] <= 0) continue;
    drawn = i;
    sum += mass[i];
    if (sum > sought) break;
  }
  return drawn;
}

// Each draw goes by weight * squared distance to the nearest of the levels so far.
std::vector<double> plus_plus_starts(const FitData& data, int num_levels, uint64_t seed) {
  const CounterRng rng(seed);
  const size_t size = data.values.size();
  std::vector<double> mass(size), squares(size, std::numeric_limits<double>::infinity());
  for (size_t i = 0; i < size; ++i) mass[i] = weight_at(data, i);
  std::vector<double> levels(num_levels);
  for (int l = 0; l < num_levels; ++l) {
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    // Without mass every value is a level already, and the first of them is taken again.
    levels[l] = total > 0 ? value_at(data, draw(mass, total * rng.uniform(l))) : levels[0];
    for (size_t i = 0; i < size; ++i) {
      const double distance = value_at(data, i) - levels[l];
      squares[i] = std::min(squares[i], distance * distance);
      mass[i] = weight_at(data, i) * squares[i];
    }
  }
  std::sort(levels.begin(), levels.end());
  return levels;
}

// One step of Lloyd's; false when it changed nothing.
bool improve(const FitData& data, std::vector<double>& levels) {
  std::vector<HistogramCell> clusters(levels.size());
  for (size_t i = 0; i < data.values.size(); ++i) {
    const double x = value_at(data, i);
    clusters[nearest(levels, x)].add(x, weight_at(data, i));
  }
  bool changed = false;
  for (size_t l = 0; l < levels.size(); ++l) {
    if (clusters[l].weight <= 0) continue;
    const double mean = clusters[l].sum / clusters[l].weight;
    changed = changed || mean != levels[l];
    levels[l] = mean;
  }
  return changed;
}

}  // namespace

std::string_view to_string(CodebookMethod method) {
  for (const NamedMethod& entry : kMethods) {
    if (entry.method == method) return entry.name;
  }
  assert(false);
  return "";
}

CodebookMethod parse_codebook_method(std::string_view name) {
  for (const NamedMethod& entry : kMethods) {
    if (entry.name == name) return entry.method;
  }
  throw std::invalid_argument(fmt::format(
      "codebook method '{}': expected exact, lloyd, normal-float, uniform or heuristic", name));
}

std::vector<float> lloyd_codebook(const FitData& data, int bits, LloydStart start, uint64_t seed) {
  check_fit(data.values, data.weights, bits);
  const int num_levels = 1 << bits;
  std::vector<double> levels = start == LloydStart::kPlusPlus
                                   ? plus_plus_starts(data, num_levels, seed)
                                   : quantile_starts(data, num_levels);
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  for (int i = 0; i < kMaxIterations && improve(data, levels); ++i) {
  }
  std::vector<float> rounded(levels.begin(), levels.end());
  rounded.erase(std::unique(rounded.begin(), rounded.end()), rounded.end());
  return fill_levels(std::move(rounded), num_levels);
}

std::vector<float> normal_float_codebook(int bits) {
  check_bits(bits);
  const int num_levels = 1 << bits, half = num_levels / 2;
  const double offset = 1 - 0.5 * (1.0 / (2 * num_levels) + 1.0 / (2 * num_levels - 2));
  const double largest = normal_quantile(offset);
  // Quantile of the i-th of n equal steps from 1/2 to `offset`.
  const auto step = [&](int i, int n) {
    return static_cast<float>(normal_quantile(0.5 + (offset - 0.5) * i / n) / largest);
  };
  std::vector<float> levels(num_levels);  // levels[half - 1] stays 0
  for (int i = 1; i < half; ++i) levels[half - 1 - i] = -step(i, half - 1);
  for (int i = 1; i <= half; ++i) levels[half - 1 + i] = step(i, half);
  levels.front() = -1;  // against the last bit of the division
  levels.back() = 1;
  return levels;
}

std::vector<float> uniform_codebook(int bits) {
  check_bits(bits);
  const int last = (1 << bits) - 1;
  std::vector<float> levels(last + 1);
  for (int i = 0; i <= last; ++i) levels[i] = static_cast<float>(-1 + 2.0 * i / last);
  return levels;
}

std::vector<float> fit_codebook(CodebookMethod method, const FitData& data, int bits,
                                uint64_t seed) {
  check_fit(data.values, data.weights, bits);
  switch (method) {
    case CodebookMethod::kExact: return compute_nuq_codebook(data.values, data.weights, bits);
    case CodebookMethod::kLloyd: return lloyd_codebook(data, bits, LloydStart::kPlusPlus, seed);
    case CodebookMethod::kNormalFloat: return normal_float_codebook(bits);
    case CodebookMethod::kUniform: return uniform_codebook(bits);
    case CodebookMethod::kHeuristic: return create_heuristic_codebook(fmt::format("nuq{}", bits));
  }
  throw std::invalid_argument("codebook method: unknown");
}

double codebook_cost(const FitData& data, std::span<const float> codebook) {
  assert(!codebook.empty());
  assert(data.weights.empty() || data.weights.size() == data.values.size());
  const std::vector<double> levels(codebook.begin(), codebook.end());
  double cost = 0;
  for (size_t i = 0; i < data.values.size(); ++i) {
    const double x = data.values[i];
    const double error = x - levels[nearest(levels, x)];
    cost += weight_at(data, i) * error * error;
  }
  return cost;
}

}  // namespace kvquant
