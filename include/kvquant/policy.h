// Policies: names for how hard a cache is compressed, for those who would rather say what they have
// than write a spec. docs/policies.md has the table and what was measured.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

// From the least to the most compressed.
enum class KVPolicyName { kDefault, kHighCompression, kMemoryEmergency };

// "default", "high_compression", "memory_emergency".
std::string to_string(KVPolicyName name);
std::vector<KVPolicyName> policy_names();
// Throws std::invalid_argument listing the known names.
KVPolicyName parse_policy_name(std::string_view name);

// What of a model decides the size of its cache.
struct PolicyModel {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_context = 0;     // tokens; 0: not known
  int64_t sliding_window = 0;  // tokens; 0: none
  int64_t weight_bytes = 0;    // as they lie in memory
};

// What a policy stores. Rises of perplexity are relative: 0.03 is 3%.
struct CompressorConfig {
  KVPolicyName policy = KVPolicyName::kDefault;
  std::string model_id;
  std::string spec;       // for parse_spec
  double ppl_budget = 0;  // what the policy is meant to keep, see docs/policies.md
  std::string key_codec, value_codec;
  int sink_tokens = 0;    // first tokens kept fp16
  int recent_tokens = 0;  // last tokens kept fp16
  bool use_hadamard_v = false;
  bool use_ln_nullspace_v = false;
};

// Throws std::invalid_argument for an unknown policy or a model without layers, heads or channels.
CompressorConfig build_compressor_config_for_policy(const PolicyModel& config,
                                                    const std::string& model_id,
                                                    std::string_view policy_name);

// Bytes of weights and of the caches of `batch` sequences of max_context tokens each: allocated
// bytes, half-empty blocks and windows included (cache/forecast.h), without activations.
int64_t policy_bytes(const PolicyModel& config, KVPolicyName name, int64_t batch,
                     int64_t max_context);

inline constexpr double kNoPplBudget = std::numeric_limits<double>::infinity();

// The least compressed policy that fits into memory_bytes, if its ppl_budget is within the one
// given. Less memory never chooses a less compressed policy, a smaller budget never a lossier one.
// Throws std::invalid_argument when none fits, saying what would, and for a batch or context below
// 1, a context beyond the model's, a negative budget or NaN.
KVPolicyName choose_policy_for_run(const PolicyModel& config, int64_t memory_bytes, int64_t batch,
                                   int64_t max_context, double ppl_budget = kNoPplBudget);

}  // namespace kvquant
