// include/kvquant/policy.h for a loaded model, and for many questions about one.
#pragma once

#include <vector>

#include "cache/forecast.h"
#include "kvquant/policy.h"
#include "model/model.h"

namespace kvquant {

PolicyModel policy_model(Model& model);

// What every policy takes of a model's memory, forecast once.
class PolicyForecasts {
 public:
  explicit PolicyForecasts(const PolicyModel& config);

  // As the functions of these names.
  int64_t policy_bytes(KVPolicyName name, int64_t batch, int64_t max_context) const;
  KVPolicyName choose(int64_t memory_bytes, int64_t batch, int64_t max_context,
                      double ppl_budget) const;

 private:
  const CacheForecast& of(KVPolicyName name) const { return caches_[static_cast<size_t>(name)]; }
  void check_run(int64_t batch, int64_t max_context) const;
  std::string nothing_fits(int64_t memory_bytes, int64_t batch, int64_t max_context,
                           double ppl_budget) const;

  PolicyModel config_;
  std::vector<CacheForecast> caches_;  // by policy
};

}  // namespace kvquant
