// How fast channels rotate in models that were stretched to longer contexts than they were first
// trained for. Of a pair of channels c the frequency is at first
//
//   f[c] = theta^(-2c / head_dim) / divisors[c]
//
//   linear    f / factor (position interpolation, arXiv 2306.15595)
//   dynamic   f of a larger theta that grows with the length of the sequence, once that is above
//             original_context
//   llama3    f / factor for wavelengths above original_context / low_freq_factor, f below
//             original_context / high_freq_factor, a blend between them
//   yarn      f for pairs that turn often within original_context, f / factor for those that don't,
//             a blend between them; queries and keys are multiplied by attention_factor
//             (arXiv 2309.00071)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvquant {

enum class RopeScalingType { kNone, kLinear, kDynamic, kLlama3, kYarn };

struct RopeScaling {
  RopeScalingType type = RopeScalingType::kNone;
  double factor = 1;             // of the context
  int64_t original_context = 0;  // tokens; dynamic, llama3 and yarn
  double low_freq_factor = 1;    // llama3
  double high_freq_factor = 4;
  double beta_fast = 32;  // yarn: turns within original_context
  double beta_slow = 1;
  bool truncate = true;  // yarn: the blend begins and ends at whole channels
  // Yarn: of queries and of keys. A RopeTable has none of it: scores are to be multiplied by its
  // square.
  double attention_factor = 1;
  std::vector<double> divisors{};  // [head_dim / 2], or empty: all 1

  bool operator==(const RopeScaling&) const = default;
};

// "none", "linear", "dynamic", "llama3", "yarn".
const char* rope_scaling_name(RopeScalingType type);

// What yarn's authors suggest: 0.1 mscale ln(factor) + 1 (1 for factors up to 1), divided by the
// same of mscale_all_dim when neither is 0.
double yarn_attention_factor(double factor, double mscale = 0, double mscale_all_dim = 0);

// The rule that the numbers break, with the value; empty when they can be used.
std::string rope_scaling_fault(const RopeScaling& scaling, double theta, int64_t head_dim);

// Angles between neighbouring positions, [head_dim / 2]. `context` is the length of the longest
// sequence, in tokens, and matters for dynamic only. They fall with the channel unless divisors
// make them rise. Throws std::invalid_argument when there is a fault.
std::vector<double> rope_frequencies(int64_t head_dim, double theta, const RopeScaling& scaling,
                                     int64_t context);

}  // namespace kvquant
