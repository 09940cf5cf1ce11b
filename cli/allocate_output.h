// What kvquant allocate prints and writes.
#pragma once

#include <string>
#include <vector>

#include "bench/result.h"
#include "eval/allocate.h"
#include "eval/perplexity.h"

namespace kvquant::cli {

// An allocation as a spec, and what came of it on the text of the check.
struct CheckedAllocation {
  double budget_bits = 0;
  bool is_mixture = false;  // else one codec per side, to compare with
  Allocation allocation;
  CacheSpec spec;
  PerplexityResult result;
};

// The divergence of each candidate of each layer, sums and bits.
std::string sensitivity_text(const SensitivityTable& table, const SensitivityOptions& options);
Json sensitivity_json(const SensitivityTable& table);

// Of one budget: the mixture first.
std::string comparison_text(const std::vector<CheckedAllocation>& checked);
Json to_json(const CheckedAllocation& checked, CacheMode mode);

}  // namespace kvquant::cli
