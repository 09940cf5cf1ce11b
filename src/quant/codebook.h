// Codebooks that need no calibration, and what the names nuq2, nuq3, nuq4 mean.
#pragma once

#include <string_view>
#include <vector>

namespace kvquant {

int get_nuq_bitwidth(std::string_view name);  // "nuq3" and "nuq3-1%" are 3
int get_num_levels(std::string_view name);    // 2^bits

// Ascending levels in [-1, 1], symmetric, for data normalised to the range that is left after 1% of
// outliers. The levels of a normal distribution clipped at a = 2.5758 standard deviations, spread
// with the density that is optimal for the squared error of many levels, the cube root of the
// data's (Panter and Dite 1951), which is again normal, sqrt(3) times as wide: with Q the normal
// quantile function, b = a / sqrt(3) and p = Phi(-b),
//
//   level i of L = Q(p + (1 - 2 p) (i + 1/2) / L) / b
//
// Mean squared error on standard normal data with 1% of outliers kept exactly: 0.0068, 0.0266,
// 0.1014 at 4, 3, 2 bits (the optimum: 0.0068, 0.0263, 0.0966).
// Throws std::invalid_argument for names other than nuq2, nuq3, nuq4 with or without "-P%".
std::vector<float> create_heuristic_codebook(std::string_view name);

}  // namespace kvquant
