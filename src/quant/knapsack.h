// One option of each group, for the least cost under a budget of bytes: the multiple-choice
// knapsack (Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter 11), by dynamic
// programming over the budget in 2^18 steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvquant {

struct KnapsackOption {
  int64_t bytes = 0;
  double cost = 0;
};
using KnapsackGroup = std::vector<KnapsackOption>;

struct KnapsackChoice {
  std::vector<size_t> options;  // index of the one that is taken of each group
  int64_t bytes = 0;
  double cost = 0;
  // No choice within the budget costs less, up to rounding (Lagrange relaxation).
  double lower_bound = 0;
};

// The budget is never passed. Sizes are rounded up to a step, so where groups fill the budget to
// within (number of groups) / 2^18 of it, a slightly cheaper choice may be missed. Of equal costs
// the smaller one is taken. Throws std::invalid_argument when there is no group, one is empty or
// has a negative size, a cost is not finite, or the smallest options of all are larger than the
// budget.
KnapsackChoice solve_knapsack(std::span<const KnapsackGroup> groups, int64_t max_bytes);

}  // namespace kvquant
