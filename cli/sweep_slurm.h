// A sweep as job arrays of Slurm: submitted, collected, both as often as one likes.
#pragma once

#include "cli/slurm_script.h"
#include "cli/sweep_plan.h"

namespace kvquant::cli {

// Submits what has no result and isn't queued, unless asked not to; says how the others are.
// Returns how many failed or were out of memory in Slurm's sense: they are submitted again by the
// next call. Throws std::invalid_argument when Slurm is absent or refuses.
int64_t run_on_slurm(const SweepPlan& plan, const SlurmFlags& flags, bool quiet);

}  // namespace kvquant::cli
