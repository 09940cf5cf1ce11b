// How the rounding error of one channel of a key is made up for by the channels rounded after it.
//
// What attention loses is not the squared error of a key but that of its scores, e' M e with M the
// second moment of the queries that meet the key. Channels are rounded one after the other; before
// a channel is rounded, a linear combination of the errors made so far is added to it, chosen so
// that the expected loss is least (the factor L of M = L D L'; arXiv 2210.17323, 2307.13304, there
// for weights, here for keys, whose metric calibration knows). Codes stay codes: nothing changes
// for whoever decodes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvquant {

// Added to M's diagonal, as a share of it, before it is factored: errors of a channel that queries
// hardly read would otherwise be allowed to grow until they leave the codebook. In a simulation of
// SmolLM2's 4-bit keys, 2, 5 and 15% gave a mean KL of 0.0064, 0.0064 and 0.0062.
inline constexpr double kFeedbackDamping = 0.05;

// Weights of the distances between a query and the keys that it meets, [seq_len], sum 1: the number
// of pairs at that distance, times how much attention falls off with it, as 1 / (distance + 1).
std::vector<double> lag_weights(int64_t seq_len);

// The second moment, seen from a key before RoPE, of queries at all distances: the average of
// R_d G R_d' with R_d the rotation by d positions. gram: G = E[q q'] before RoPE, [D, D]; angles:
// the rotation of channels (c, c + D/2) per position, [D/2]; weights: of d = 0, 1, ... Returns
// [D, D], symmetric.
class LagMetric {
 public:
  // Sums over lags once, for any number of grams.
  LagMetric(std::span<const double> angles, std::span<const double> weights);
  std::vector<double> operator()(std::span<const double> gram) const;

 private:
  int64_t half_;
  std::vector<double> cos_difference_, sin_difference_;  // of angles i and j, [D/2, D/2]
  std::vector<double> cos_sum_, sin_sum_;
};

struct RoundingSteps {
  std::vector<uint8_t> order;       // [D], the channel rounded at step i
  std::vector<float> coefficients;  // [D, D], row i: of the errors of steps 0 .. i - 1, then zeros
  std::vector<float> weights;       // [D], per channel: what is left of its squared error's cost
};

// metric [D, D], scales [D] of the channels' codes: those that weigh most come first. Requires
// D <= 256, a symmetric positive semidefinite metric. A zero metric gives zero coefficients.
RoundingSteps fit_rounding_steps(std::span<const double> metric, std::span<const float> scales);

}  // namespace kvquant
