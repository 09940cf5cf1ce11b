#include "quant/knapsack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace kvquant {
namespace {

// Every choice there is.
double least_cost_by_trial(std::span<const KnapsackGroup> groups, int64_t max_bytes) {
  if (max_bytes < 0) return std::numeric_limits<double>::infinity();
  if (groups.empty()) return 0;
  double least = std::numeric_limits<double>::infinity();
  for (const KnapsackOption& option : groups[0]) {
    least = std::min(
        least, option.cost + least_cost_by_trial(groups.subspan(1), max_bytes - option.bytes));
  }
  return least;
}

std::vector<KnapsackGroup> random_groups(std::mt19937& rng, size_t count, int64_t scale) {
  std::uniform_int_distribution<int64_t> bytes(0, 20);
  std::uniform_real_distribution<double> cost(0, 1);
  std::vector<KnapsackGroup> groups(count);
  for (auto& group : groups) {
    group.resize(1 + rng() % 4);
    for (auto& option : group) option = {bytes(rng) * scale, cost(rng)};
  }
  return groups;
}

int64_t smallest(std::span<const KnapsackGroup> groups) {
  int64_t total = 0;
  for (const auto& group : groups) {
    int64_t least = group[0].bytes;
    for (const auto& option : group) least = std::min(least, option.bytes);
    total += least;
  }
  return total;
}

TEST(Knapsack, IsAsGoodAsTheBestOfAllChoices) {
  std::mt19937 rng(1);
  for (int trial = 0; trial < 21; ++trial) {
    const int64_t scale = trial % 2 == 0 ? 1 : 1000003;
    const auto groups = random_groups(rng, 1 + static_cast<size_t>(trial % 7), scale);
    const int64_t least = smallest(groups);
    for (const int64_t more : {0, 1, 7, 200}) {
      const int64_t budget = least + more * scale + scale / 2;  // half a size for rounded steps
      const KnapsackChoice choice = solve_knapsack(groups, budget);
      ASSERT_LE(choice.bytes, budget);
      ASSERT_NEAR(choice.cost, least_cost_by_trial(groups, budget), 1e-12);
      ASSERT_LE(choice.lower_bound, choice.cost);
      double cost = 0;
      int64_t bytes = 0;
      for (size_t g = 0; g < groups.size(); ++g) {
        cost += groups[g][choice.options[g]].cost;
        bytes += groups[g][choice.options[g]].bytes;
      }
      ASSERT_EQ(cost, choice.cost);
      ASSERT_EQ(bytes, choice.bytes);
    }
  }
}

TEST(Knapsack, ManyGroupsAreSolvedNextToTheBound) {
  std::mt19937 rng(2);
  const auto groups = random_groups(rng, 160, 100'000);
  const KnapsackChoice choice = solve_knapsack(groups, smallest(groups) + 60'000'000);
  EXPECT_GT(choice.lower_bound, 0.98 * choice.cost);
  EXPECT_LE(choice.lower_bound, choice.cost);
}

TEST(Knapsack, OfEqualCostsTheSmallerIsTaken) {
  const std::vector<KnapsackGroup> groups = {{{30, 1}, {10, 1}, {20, 1}}, {{5, 2}, {50, 2}}};
  EXPECT_EQ(solve_knapsack(groups, 1000).options, (std::vector<size_t>{1, 0}));
  EXPECT_EQ(solve_knapsack(groups, 1000).bytes, 15);
}

TEST(Knapsack, WhatCannotBeSolvedIsRefused) {
  const std::vector<KnapsackGroup> groups = {{{10, 1}}};
  EXPECT_THROW(solve_knapsack(groups, 9), std::invalid_argument);
  EXPECT_THROW(solve_knapsack({}, 9), std::invalid_argument);
  EXPECT_THROW(solve_knapsack(std::vector<KnapsackGroup>(1), 9), std::invalid_argument);
  EXPECT_THROW(solve_knapsack(std::vector<KnapsackGroup>{{{-1, 1}}}, 9), std::invalid_argument);
  EXPECT_THROW(solve_knapsack(std::vector<KnapsackGroup>{{{1, std::nan("")}}}, 9),
               std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
