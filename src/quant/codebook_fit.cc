#include "quant/codebook_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <unordered_map>

#include "base/check.h"
#include "formats/code_planes.h"

namespace kvquant {
namespace {

constexpr int kMaxCells = WeightedHistogram::kNumBins;

float clamped(float x) { return std::clamp(x, -1.0f, 1.0f) + 0.0f; }  // -0 becomes 0

// Cuts ascending cells into runs. With the total fixed, the least squared error is the largest sum
// of (sum w x)^2 / sum w over the runs.
class RunPartition {
 public:
  explicit RunPartition(std::span<const HistogramCell> cells)
      : num_cells_(static_cast<int>(cells.size())),
        weight_(cells.size() + 1),
        sum_(cells.size() + 1) {
    HistogramCell total;
    for (const HistogramCell& cell : cells) {
      total.weight += cell.weight;
      total.sum += cell.sum;
    }
    const double centre = total.sum / total.weight;  // values far from 0 would cost digits
    for (int i = 0; i < num_cells_; ++i) {
      weight_[i + 1] = weight_[i] + cells[i].weight;
      sum_[i + 1] = sum_[i] + (cells[i].sum - centre * cells[i].weight);
    }
  }

  // The first cells of the num_runs <= num_cells best runs, and num_cells.
  std::vector<int> cut(int num_runs) {
    std::vector<double> gains(num_cells_ + 1), before;
    std::vector<std::vector<int>> starts(num_runs + 1, std::vector<int>(num_cells_ + 1));
    for (int end = 1; end <= num_cells_; ++end) gains[end] = gain(0, end);
    for (int runs = 2; runs <= num_runs; ++runs) {
      before = gains;
      const Row row{runs, before, gains, starts[runs]};
      solve(row, {runs, num_cells_}, {runs - 1, num_cells_ - 1});
    }
    std::vector<int> cuts(num_runs + 1, num_cells_);
    for (int runs = num_runs; runs > 0; --runs) cuts[runs - 1] = starts[runs][cuts[runs]];
    return cuts;
  }

 private:
  struct Range {
    int first, last;  // inclusive
  };
  struct Row {  // gains[e] is the best of the first e cells in `runs` runs, the last from starts[e]
    int runs;
    std::span<const double> before;  // the gains with one run less
    std::span<double> gains;
    std::span<int> starts;
  };

  double gain(int begin, int end) const {
    const double sum = sum_[end] - sum_[begin];
    return sum * sum / (weight_[end] - weight_[begin]);
  }

  // For all ends of a range, when the last run starts in `starts`: the middle end first, which
  // halves the starts that the others have to try. Equal gains: the first start.
  void solve(const Row& row, Range ends, Range starts) const {
    if (ends.first > ends.last) return;
    const int end = (ends.first + ends.last) / 2;
    double best = -1;
    int best_start = starts.first;
    for (int start = starts.first; start <= std::min(starts.last, end - 1); ++start) {
      const double sum = row.before[start] + gain(start, end);
      if (sum > best) {
        best = sum;
        best_start = start;
      }
    }
    row.gains[end] = best;
    row.starts[end] = best_start;
    solve(row, {ends.first, end - 1}, {starts.first, best_start});
    solve(row, {end + 1, ends.last}, {best_start, starts.last});
  }

  int num_cells_;
  std::vector<double> weight_, sum_;  // [num_cells + 1]: of the cells before, sum less the centre
};

float weight_at(std::span<const float> weights, size_t i) {
  return weights.empty() ? 1.0f : weights[i];
}

// Empty when there are more than kMaxCells distinct values.
std::vector<HistogramCell> distinct_cells(std::span<const float> values,
                                          std::span<const float> weights) {
  std::unordered_map<float, HistogramCell> cells;
  for (size_t i = 0; i < values.size(); ++i) {
    const float w = weight_at(weights, i);
    if (w == 0) continue;
    const float x = clamped(values[i]);
    cells[x].add(x, w);
    if (cells.size() > kMaxCells) return {};
  }
  std::vector<std::pair<float, HistogramCell>> sorted(cells.begin(), cells.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<HistogramCell> out;
  for (const auto& entry : sorted) out.push_back(entry.second);
  return out;
}

// Cells of equal width, each in a number of equal parts.
struct Grid {
  double low = 0, per_unit = 0;        // cells per unit of x
  std::vector<int> parts, first_part;  // [num_cells]

  int part_of(float x) const {
    const double at = (x - low) * per_unit;
    const auto cell = std::min(static_cast<size_t>(at), parts.size() - 1);
    const double inside = at - static_cast<double>(cell);
    const int part = std::min(static_cast<int>(inside * parts[cell]), parts[cell] - 1);
    return first_part[cell] + part;
  }
};

std::vector<HistogramCell> fill(const Grid& grid, std::span<const float> values,
                                std::span<const float> weights) {
  std::vector<HistogramCell> cells(grid.first_part.back() + grid.parts.back());
  for (size_t i = 0; i < values.size(); ++i) {
    cells[grid.part_of(values[i])].add(values[i], weight_at(weights, i));
  }
  return cells;
}

// Where values are dense beside a long range (heavy tails), cells of equal width alone could not
// tell them apart. So half the cells are handed out by the squared error inside the others.
std::vector<HistogramCell> binned_cells(std::span<const float> values,
                                        std::span<const float> weights) {
  constexpr int kCoarse = kMaxCells / 2;
  float low = 1, high = -1;
  for (size_t i = 0; i < values.size(); ++i) {
    if (weight_at(weights, i) == 0) continue;
    low = std::min(low, clamped(values[i]));
    high = std::max(high, clamped(values[i]));
  }
  std::vector<float> inside(values.begin(), values.end());
  for (float& x : inside) x = std::clamp(x, low, high);  // those without weight stay in the grid
  Grid grid{low, kCoarse / (double{high} - low), std::vector<int>(kCoarse, 1),
            std::vector<int>(kCoarse)};
  for (int c = 0; c < kCoarse; ++c) grid.first_part[c] = c;
  const std::vector<HistogramCell> coarse = fill(grid, inside, weights);
  std::vector<double> errors(kCoarse, 0.0);
  double total = 0;
  for (int c = 0; c < kCoarse; ++c) {
    const HistogramCell& cell = coarse[c];
    if (cell.weight <= 0) continue;
    errors[c] = std::max(0.0, cell.square_sum - cell.sum * cell.sum / cell.weight);
    total += errors[c];
  }
  for (int c = 0; c < kCoarse; ++c) {
    if (total > 0) grid.parts[c] += static_cast<int>(kCoarse * (errors[c] / total));
    if (c > 0) grid.first_part[c] = grid.first_part[c - 1] + grid.parts[c - 1];
  }
  std::vector<HistogramCell> cells = fill(grid, inside, weights);
  std::erase_if(cells, [](const HistogramCell& cell) { return cell.weight <= 0; });
  return cells;
}

}  // namespace

void WeightedHistogram::add(float x, float w) {
  check_arg(std::isfinite(x) && std::isfinite(w) && w >= 0,
            "histogram: a value is not finite, or its weight is negative or not finite");
  const double inside = clamped(x);
  const auto bin = static_cast<int>((inside + 1) * (kNumBins / 2.0));
  cells_[std::min(bin, kNumBins - 1)].add(inside, w);
}

void WeightedHistogram::merge(const WeightedHistogram& other) {
  for (int b = 0; b < kNumBins; ++b) {
    cells_[b].weight += other.cells_[b].weight;
    cells_[b].sum += other.cells_[b].sum;
    cells_[b].square_sum += other.cells_[b].square_sum;
  }
}

double WeightedHistogram::total_weight() const {
  double total = 0;
  for (const HistogramCell& cell : cells_) total += cell.weight;
  return total;
}

void check_bits(int bits) {
  check_arg(bits >= kMinCodeBits && bits <= kMaxCodeBits,
            fmt::format("codebook fit: {} bits, not {} to {}", bits, kMinCodeBits, kMaxCodeBits));
}

void check_fit(std::span<const float> values, std::span<const float> weights, int bits) {
  check_bits(bits);
  check_arg(!values.empty(), "codebook fit: there are no values");
  check_arg(weights.empty() || weights.size() == values.size(),
            fmt::format("codebook fit: {} weights for {} values", weights.size(), values.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      throw std::invalid_argument(fmt::format("codebook fit: value {} is {}", i, values[i]));
    }
  }
  double total = weights.empty() ? 1 : 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i]) || weights[i] < 0) {
      throw std::invalid_argument(fmt::format("codebook fit: weight {} is {}", i, weights[i]));
    }
    total += weights[i];
  }
  check_arg(total > 0, "codebook fit: all weights are 0");
}

std::vector<HistogramCell> gather_cells(std::span<const float> values,
                                        std::span<const float> weights) {
  check_fit(values, weights, kMaxCodeBits);
  std::vector<HistogramCell> cells = distinct_cells(values, weights);
  return cells.empty() ? binned_cells(values, weights) : cells;
}

std::vector<float> fill_levels(std::vector<float> levels, int num_levels) {
  assert(static_cast<int>(levels.size()) <= num_levels);
  while (static_cast<int>(levels.size()) < num_levels) {
    const size_t size = levels.size();
    size_t widest = 0;
    float widest_gap = -1, added = 0;
    for (size_t i = 0; i <= size; ++i) {  // the gap below level i
      const float low = i > 0 ? levels[i - 1] : -1.0f;
      const float high = i < size ? levels[i] : 1.0f;
      if (high - low <= widest_gap) continue;
      widest_gap = high - low;
      widest = i;
      added = i == 0 ? -1.0f : i == size ? 1.0f : 0.5f * (low + high);
    }
    levels.insert(levels.begin() + static_cast<std::ptrdiff_t>(widest), added);
  }
  return levels;
}

std::vector<float> fit_cells(std::span<const HistogramCell> cells, int bits) {
  assert(!cells.empty() && bits >= kMinCodeBits && bits <= kMaxCodeBits);
  const int num_levels = 1 << bits;
  const std::vector<int> cuts =
      RunPartition(cells).cut(std::min(num_levels, static_cast<int>(cells.size())));
  std::vector<float> levels;
  for (size_t r = 0; r + 1 < cuts.size(); ++r) {
    double weight = 0, sum = 0;
    for (int c = cuts[r]; c < cuts[r + 1]; ++c) {
      weight += cells[c].weight;
      sum += cells[c].sum;
    }
    levels.push_back(std::clamp(static_cast<float>(sum / weight), -1.0f, 1.0f));
  }
  return fill_levels(std::move(levels), num_levels);
}

std::vector<float> compute_nuq_codebook(const WeightedHistogram& histogram, int bits) {
  check_bits(bits);
  std::vector<HistogramCell> cells(histogram.cells().begin(), histogram.cells().end());
  std::erase_if(cells, [](const HistogramCell& cell) { return cell.weight <= 0; });
  check_arg(!cells.empty(), "codebook fit: the histogram holds no weight");
  return fit_cells(cells, bits);
}

std::vector<float> compute_nuq_codebook(std::span<const float> values,
                                        std::span<const float> weights, int bits) {
  check_bits(bits);
  return fit_cells(gather_cells(values, weights), bits);
}

}  // namespace kvquant
