// Codecs per layer and side for the least divergence under a budget of bytes, from a table of what
// each costs alone. To first order these costs add up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/sensitivity.h"

namespace kvquant {

struct Allocation {
  std::vector<Codec> keys, values;  // by layer
  int64_t bytes = 0;                // of the table
  double bits = 0;                  // of these bytes, per value
  double kl_sum = 0;                // of the table, added up
  double kl_lower_bound = 0;        // no allocation within the budget has a smaller sum
};

// The smallest and the largest true bits that the table's codecs can reach.
struct BitsRange {
  double least = 0, most = 0;
};
BitsRange reachable_bits(const SensitivityTable& table);

// Throws std::invalid_argument when `bits` is below what the table can reach, or a layer has no
// row.
Allocation allocate_bits(const SensitivityTable& table, double bits);

// One codec for all keys and one for all values: every pair whose rows are in the table for all
// layers, the smallest first.
std::vector<Allocation> uniform_allocations(const SensitivityTable& table);

// Those that a mixture of `bits` is to be compared with: the `count` of least divergence within the
// budget, and the smallest one above it when it is at most half a bit larger.
std::vector<Allocation> uniform_rivals(const SensitivityTable& table, double bits, int64_t count);

}  // namespace kvquant
