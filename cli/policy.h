// --policy, which generate, chat, perplexity, bench and eval share.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/common.h"
#include "kvquant/policy.h"

namespace kvquant::cli {

struct PolicyOptions {
  std::string policy;  // empty: none
  std::string memory;  // of auto
  std::optional<double> ppl_budget;
};

void add_policy_flags(CLI::App& command, PolicyOptions& options);

// Before the model is loaded: throws std::invalid_argument for an unknown policy, flags that
// exclude each other or that auto lacks.
void check_policy(const PolicyOptions& options, const CommonOptions& common);

// What a run will read.
struct PolicyLoad {
  int64_t batch = 1;
  int64_t context = 0;  // tokens of a sequence; 0: the model's
};

// Where there is a policy, `specs` become its own; said on stderr unless quiet. Requires checked
// options.
void apply_policy(const PolicyOptions& options, const CommonOptions& common, Model& model,
                  const PolicyLoad& load, std::vector<CacheSpec>& specs);

}  // namespace kvquant::cli
