#include "ops/softmax_state.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvquant {
namespace {

SoftmaxState state_of(const std::vector<float>& scores) {
  SoftmaxState state;
  for (float score : scores) merge(state, SoftmaxState{score, 1});
  return state;
}

TEST(SoftmaxState, MergingSingleScoresByHand) {
  const SoftmaxState state = state_of({1, 3, 2});
  EXPECT_EQ(state, (SoftmaxState{3, 1.75f}));  // 2^-2 + 1 + 2^-1
  EXPECT_EQ(normaliser(state), 1 / 1.75f);
}

TEST(SoftmaxState, FactorsBringBothSumsToTheLargerMax) {
  SoftmaxState state{1, 1};
  const MergeFactors up = merge(state, SoftmaxState{4, 2});
  EXPECT_EQ(up.keep, 0.125f);
  EXPECT_EQ(up.add, 1.0f);
  EXPECT_EQ(state, (SoftmaxState{4, 2.125f}));
  const MergeFactors down = merge(state, SoftmaxState{2, 4});
  EXPECT_EQ(down.keep, 1.0f);
  EXPECT_EQ(down.add, 0.25f);
  EXPECT_EQ(state, (SoftmaxState{4, 3.125f}));
}

TEST(SoftmaxState, AnEmptyStateIsNeutralOnBothSides) {
  const SoftmaxState full{-5, 3};
  SoftmaxState state = full;
  const MergeFactors right = merge(state, SoftmaxState{});
  EXPECT_EQ(state, full);
  EXPECT_EQ(right.keep, 1.0f);
  EXPECT_EQ(right.add, 0.0f);
  SoftmaxState empty;
  const MergeFactors left = merge(empty, full);
  EXPECT_EQ(empty, full);
  EXPECT_EQ(left.keep, 0.0f);
  EXPECT_EQ(left.add, 1.0f);
}

TEST(SoftmaxState, TwoEmptyStatesStayEmptyWithoutNan) {
  SoftmaxState state;
  const MergeFactors factors = merge(state, SoftmaxState{});
  EXPECT_TRUE(state.empty());
  EXPECT_EQ(factors.keep, 1.0f);
  EXPECT_EQ(factors.add, 0.0f);
  EXPECT_EQ(normaliser(state), 0.0f);
}

TEST(SoftmaxState, FarApartScoresUnderflowToZeroAndNotToNan) {
  SoftmaxState state{3e38f, 1};
  const MergeFactors factors = merge(state, SoftmaxState{-3e38f, 1});
  EXPECT_EQ(factors.add, 0.0f);
  EXPECT_EQ(state, (SoftmaxState{3e38f, 1}));
}

TEST(SoftmaxState, GroupingOfPartsDoesNotMatterForExactWeights) {
  const std::vector<float> scores = {-7, 0, 3, 3, -2, 5, 1, -4};
  const SoftmaxState whole = state_of(scores);
  for (size_t cut = 0; cut <= scores.size(); ++cut) {
    SoftmaxState left = state_of({scores.begin(), scores.begin() + static_cast<long>(cut)});
    merge(left, state_of({scores.begin() + static_cast<long>(cut), scores.end()}));
    EXPECT_EQ(left, whole) << "cut at " << cut;  // powers of two: no rounding anywhere
  }
}

}  // namespace
}  // namespace kvquant
