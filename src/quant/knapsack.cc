#include "quant/knapsack.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr int64_t kSteps = 1 << 18;
constexpr int64_t kMaxBytes = int64_t{1} << 52;  // sums of groups are exact as double, too
constexpr double kNever = std::numeric_limits<double>::infinity();

int64_t least_bytes(const KnapsackGroup& group) {
  int64_t least = group[0].bytes;
  for (const KnapsackOption& option : group) least = std::min(least, option.bytes);
  return least;
}

// Sum of the smallest options.
int64_t check_groups(std::span<const KnapsackGroup> groups, int64_t max_bytes) {
  check_arg(!groups.empty(), "knapsack: there is no group");
  check_arg(max_bytes <= kMaxBytes, fmt::format("knapsack: a budget of {} bytes", max_bytes));
  int64_t total = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    check_arg(!groups[g].empty() && groups[g].size() <= UINT8_MAX,
              fmt::format("knapsack: group {} has {} options", g, groups[g].size()));
    for (const KnapsackOption& option : groups[g]) {
      check_arg(option.bytes >= 0 && option.bytes <= kMaxBytes / std::ssize(groups) &&
                    std::isfinite(option.cost),
                fmt::format("knapsack: group {} has an option of {} bytes and cost {}", g,
                            option.bytes, option.cost));
    }
    total += least_bytes(groups[g]);
  }
  check_arg(total <= max_bytes, fmt::format("knapsack: the smallest options have {} bytes, more "
                                            "than the budget of {}",
                                            total, max_bytes));
  return total;
}

// Least cost of options whose price is cost + rate * bytes, minus what the budget is worth: a lower
// bound of every choice within it, for every rate.
double relaxed_cost(std::span<const KnapsackGroup> groups, int64_t max_bytes, double rate,
                    int64_t& bytes) {
  double price = 0;
  bytes = 0;
  for (const KnapsackGroup& group : groups) {
    double best = kNever;
    int64_t best_bytes = 0;
    for (const KnapsackOption& option : group) {
      const double p = option.cost + rate * static_cast<double>(option.bytes);
      if (p > best || (p == best && option.bytes >= best_bytes)) continue;
      best = p;
      best_bytes = option.bytes;
    }
    price += best;
    bytes += best_bytes;
  }
  return price - rate * static_cast<double>(max_bytes);
}

double best_lower_bound(std::span<const KnapsackGroup> groups, int64_t max_bytes) {
  int64_t bytes = 0;
  double bound = relaxed_cost(groups, max_bytes, 0, bytes);
  if (bytes <= max_bytes) return bound;
  double low = 0, high = 1e-12;  // at `high` the choice fits
  for (int i = 0; i < 200 && bytes > max_bytes; ++i, high *= 4) {
    bound = std::max(bound, relaxed_cost(groups, max_bytes, high, bytes));
  }
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    bound = std::max(bound, relaxed_cost(groups, max_bytes, middle, bytes));
    (bytes > max_bytes ? low : high) = middle;
  }
  return bound;
}

}  // namespace

KnapsackChoice solve_knapsack(std::span<const KnapsackGroup> groups, int64_t max_bytes) {
  const int64_t spare = max_bytes - check_groups(groups, max_bytes);
  const int64_t unit = spare / kSteps + 1;  // bytes of a step
  const int64_t num_steps = spare / unit;
  // cost[s]: the least one of the groups so far in s steps above the smallest options.
  std::vector<double> cost(static_cast<size_t>(num_steps + 1), 0), next(cost.size());
  std::vector<std::vector<uint8_t>> taken;  // [group][step]
  for (const KnapsackGroup& group : groups) {
    const int64_t least = least_bytes(group);
    auto& choice = taken.emplace_back(cost.size());
    std::fill(next.begin(), next.end(), kNever);
    for (size_t i = 0; i < group.size(); ++i) {
      const int64_t weight = (group[i].bytes - least + unit - 1) / unit;
      for (int64_t s = weight; s <= num_steps; ++s) {
        const double sum = cost[static_cast<size_t>(s - weight)] + group[i].cost;
        double& best = next[static_cast<size_t>(s)];
        auto& which = choice[static_cast<size_t>(s)];
        if (sum > best || (sum == best && group[i].bytes >= group[which].bytes)) continue;
        best = sum;
        which = static_cast<uint8_t>(i);
      }
    }
    cost.swap(next);
  }

  KnapsackChoice out;
  out.options.resize(groups.size());
  int64_t step = num_steps;
  while (step > 0 && cost[static_cast<size_t>(step - 1)] == cost[static_cast<size_t>(step)]) --step;
  for (size_t g = groups.size(); g-- > 0;) {
    const size_t i = taken[g][static_cast<size_t>(step)];
    out.options[g] = i;
    out.bytes += groups[g][i].bytes;
    step -= (groups[g][i].bytes - least_bytes(groups[g]) + unit - 1) / unit;
  }
  for (size_t g = 0; g < groups.size(); ++g) out.cost += groups[g][out.options[g]].cost;
  out.lower_bound = std::min(out.cost, best_lower_bound(groups, max_bytes));
  return out;
}

}  // namespace kvquant
