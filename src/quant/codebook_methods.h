// The codebooks that the exact fit is compared with, and what a codebook costs on data.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace kvquant {

enum class CodebookMethod {
  kExact,        // compute_nuq_codebook
  kLloyd,        // lloyd_codebook from k-means++ starts
  kNormalFloat,  // normal_float_codebook: ignores the data
  kUniform,      // uniform_codebook: ignores the data
  kHeuristic,    // create_heuristic_codebook: ignores the data
};

// "exact", "lloyd", "normal-float", "uniform", "heuristic".
std::string_view to_string(CodebookMethod method);
// Throws std::invalid_argument for other names.
CodebookMethod parse_codebook_method(std::string_view name);

// Normalised values with their weights, as compute_nuq_codebook takes them (codebook.h).
struct FitData {
  std::span<const float> values;   // [n > 0]
  std::span<const float> weights;  // [n], or empty: all 1
};

// 2^bits ascending levels in [-1, 1]. Throws as compute_nuq_codebook does, whatever the method.
std::vector<float> fit_codebook(CodebookMethod method, const FitData& data, int bits,
                                uint64_t seed = 42);

// Where Lloyd's iterations start.
enum class LloydStart {
  kQuantiles,  // the (i + 1/2) / L quantiles of the weight
  kPlusPlus,   // k-means++ (Arthur and Vassilvitskii 2007): drawn by weighted squared distance
};

// Lloyd's algorithm (1957/1982): nearest levels and weighted means in turn, until nothing changes
// or 200 times. A local optimum. Levels that no value is nearest to stay where they are.
std::vector<float> lloyd_codebook(const FitData& data, int bits, LloydStart start,
                                  uint64_t seed = 42);

// Both below throw std::invalid_argument unless bits is 2, 3 or 4.

// Normal float (QLoRA, arXiv 2305.14314): quantiles of the normal distribution divided by the
// largest, 2^(b-1) - 1 below zero, zero itself, 2^(b-1) above; -1 and 1 are levels.
std::vector<float> normal_float_codebook(int bits);

// -1 + 2 i / (2^bits - 1), the levels of asymmetric integers between minimum and maximum.
std::vector<float> uniform_codebook(int bits);

// sum w_i (x_i - nearest level)^2 in double; x as it is, also outside [-1, 1]. Requires finite
// values, weights.size() as in FitData, and an ascending codebook of any size above 0.
double codebook_cost(const FitData& data, std::span<const float> codebook);

}  // namespace kvquant
