// The running state of a softmax that is computed piece by piece (arXiv 1805.02867): the largest
// score so far and the sum of weights relative to it. Scores are in units of log2, that is
// scale * log2(e) * <q, k>, so that a weight is exp2(score - max). An empty state (nothing seen)
// has max = -infinity and sum = 0, and merging it changes nothing.
//
// A weighted sum of values that belongs to a state is multiplied by the factor that merge() returns
// for it: acc = acc * keep + other_acc * add.
#pragma once

#include <cmath>
#include <limits>

#include "kvquant/tensor_view.h"

namespace kvquant {

inline constexpr float kLog2E = 1.44269504088896341f;

struct SoftmaxState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;

  KVQUANT_HD bool empty() const { return max == -std::numeric_limits<float>::infinity(); }
  friend bool operator==(const SoftmaxState&, const SoftmaxState&) = default;
};

// Factors that bring two weighted sums to the merged state's max.
struct MergeFactors {
  float keep;  // for the state merged into
  float add;   // for the other
};

// Merges `other` into `state`. Both factors are finite and at most 1.
KVQUANT_HD inline MergeFactors merge(SoftmaxState& state, const SoftmaxState& other) {
  if (other.empty()) return {1, 0};
  if (state.empty()) {
    state = other;
    return {0, 1};
  }
  const float max = std::fmax(state.max, other.max);
  const MergeFactors factors{std::exp2(state.max - max), std::exp2(other.max - max)};
  state = {max, state.sum * factors.keep + other.sum * factors.add};
  return factors;
}

// What a weighted sum is multiplied by at the end; 0 for a query that saw no key.
KVQUANT_HD inline float normaliser(const SoftmaxState& state) {
  return state.sum > 0 ? 1 / state.sum : 0;
}

}  // namespace kvquant
