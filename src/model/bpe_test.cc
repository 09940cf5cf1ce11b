#include "model/bpe.h"

#include <gtest/gtest.h>

#include <random>

namespace kvquant {
namespace {

using Symbols = std::vector<int32_t>;

// Their place in the list is their rank.
Symbols merged(std::vector<BpeMerge> merges, Symbols symbols) {
  for (size_t i = 0; i < merges.size(); ++i) merges[i].rank = static_cast<int32_t>(i);
  BpeMerges(merges).apply(symbols);
  return symbols;
}

// The definition: look for the lowest rank, leftmost first, merge it, start again.
Symbols merged_by_definition(const std::vector<BpeMerge>& merges, Symbols symbols) {
  for (size_t rank = 0; rank < merges.size();) {
    const BpeMerge& merge = merges[rank];
    size_t i = 0;
    while (i + 1 < symbols.size() && (symbols[i] != merge.left || symbols[i + 1] != merge.right)) {
      ++i;
    }
    if (i + 1 >= symbols.size()) {
      ++rank;
      continue;
    }
    symbols[i] = merge.merged;
    symbols.erase(symbols.begin() + static_cast<int64_t>(i) + 1);
    rank = 0;
  }
  return symbols;
}

TEST(BpeMerges, TheLowestRankIsMergedFirst) {
  const std::vector<BpeMerge> merges{{1, 2, 10}, {0, 1, 11}, {0, 10, 12}};
  EXPECT_EQ(merged(merges, {0, 1, 2}), (Symbols{12}));
  EXPECT_EQ(merged(merges, {0, 1, 3}), (Symbols{11, 3}));
}

TEST(BpeMerges, OfEqualRanksTheLeftmostIsMergedFirst) {
  EXPECT_EQ(merged({{0, 0, 1}}, {0, 0, 0}), (Symbols{1, 0}));
  EXPECT_EQ(merged({{0, 0, 1}, {1, 1, 2}}, Symbols(100, 0)), Symbols(25, 2));
}

TEST(BpeMerges, PairsMayShareARank) {
  const std::vector<BpeMerge> merges{{0, 1, 5, 0}, {1, 2, 6, 0}, {3, 0, 7, 1}};
  for (const size_t num_others : {0, 60}) {  // short and long words
    Symbols symbols(num_others, 9);
    symbols.insert(symbols.begin(), {3, 0, 1, 2});
    BpeMerges(merges).apply(symbols);
    symbols.resize(symbols.size() - num_others);
    EXPECT_EQ(symbols, (Symbols{3, 5, 2}));
  }
}

TEST(BpeMerges, OfTwoMergesOfOnePairTheFirstCounts) {
  EXPECT_EQ(merged({{0, 1, 5}, {0, 1, 6}}, {0, 1}), (Symbols{5}));
}

TEST(BpeMerges, WithoutMergesNothingChanges) {
  EXPECT_EQ(merged({}, {3, 4, 5}), (Symbols{3, 4, 5}));
  EXPECT_EQ(merged({{0, 1, 2}}, {}), Symbols{});
  EXPECT_EQ(merged({{0, 1, 2}}, {0}), Symbols{0});
}

TEST(BpeMerges, ShortAndLongWordsAreMergedAsDefined) {
  std::mt19937 random(42);
  const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % n); };
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<BpeMerge> merges;
    for (int32_t id = 3; id < 40; ++id) merges.push_back({below(id), below(id), id, 0});
    for (const int32_t size : {1, 2, 3, 20, 47, 48, 49, 50, 200}) {
      Symbols symbols(size);
      for (int32_t& symbol : symbols) symbol = below(3);
      ASSERT_EQ(merged(merges, symbols), merged_by_definition(merges, symbols)) << "size " << size;
    }
  }
}

}  // namespace
}  // namespace kvquant
