// The exact codebook fit: weighted k-means in one dimension. Values are gathered into at most 4096
// ascending cells; clusters are runs of cells, so the best runs are found by dynamic programming,
// one row for each number of clusters, each row by divide and conquer, because the best place for
// the last cut never moves back as cells are added (Groenlund et al., arXiv 1701.07204; Wang and
// Song, Ckmeans.1d.dp, 2011). O(levels * cells * log cells), sums in double: the cost is the least
// possible up to about 1e-15 of sum w x^2. Levels are the exact means of what is in their cells.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvquant/codebook.h"  // compute_nuq_codebook of values

namespace kvquant {

// Moments of what fell into a cell.
struct HistogramCell {
  double weight = 0;      // sum of w
  double sum = 0;         // sum of w x
  double square_sum = 0;  // sum of w x^2
  void add(double x, double w) {
    weight += w;
    sum += w * x;
    square_sum += w * x * x;
  }
};

// Weighted normalised values, streamed: kNumBins cells of equal width over [-1, 1]. Bin b holds the
// x in [-1 + b / 2048, -1 + (b + 1) / 2048), x + 1 rounded to double, the last one also 1. Not
// thread-safe: one for each thread, merged in a fixed order.
class WeightedHistogram {
 public:
  static constexpr int kNumBins = 4096;

  // x outside [-1, 1] counts as -1 or 1. Throws std::invalid_argument unless x is finite and w
  // finite and not negative.
  void add(float x, float w);
  void merge(const WeightedHistogram& other);

  std::span<const HistogramCell> cells() const { return cells_; }  // [kNumBins]
  double total_weight() const;

 private:
  std::vector<HistogramCell> cells_ = std::vector<HistogramCell>(kNumBins);
};

// The best levels whose borders are borders of bins. Throws std::invalid_argument for bits outside
// 2-4 and when the histogram holds no weight.
std::vector<float> compute_nuq_codebook(const WeightedHistogram& histogram, int bits);

// What compute_nuq_codebook makes of values first: ascending cells that hold weight, at most 4096.
// One for each distinct value if those are enough; else 2048 of equal width over the range of the
// values, those whose values spread most cut up further. Throws as it does.
std::vector<HistogramCell> gather_cells(std::span<const float> values,
                                        std::span<const float> weights);

// And then: the levels of these cells, which are ascending, not empty and hold weight. Requires
// bits 2-4.
std::vector<float> fit_cells(std::span<const HistogramCell> cells, int bits);

// Adds levels until there are `num_levels`: the ends -1 and 1 or the middle between neighbours,
// always where the gap is widest (the lowest of equal ones). The given levels, ascending and in
// [-1, 1], remain as they are.
std::vector<float> fill_levels(std::vector<float> levels, int num_levels);

// Throws std::invalid_argument unless bits is 2, 3 or 4.
void check_bits(int bits);

// Throws std::invalid_argument unless bits is 2, 3 or 4; unless the values are some and finite; and
// unless `weights` is empty or as many finite, non-negative numbers with a sum above 0.
void check_fit(std::span<const float> values, std::span<const float> weights, int bits);

}  // namespace kvquant
