// Configurations of a sweep one after the other, each in a process of its own: what goes wrong
// there, the system's out-of-memory killer included, is a result or a failure, and the sweep goes
// on.
#pragma once

#include "cli/sweep_plan.h"

namespace kvquant::cli {

struct SweepCounts {
  int64_t measured = 0, out_of_memory = 0, failed = 0, skipped = 0;
};

// Skips those with results. Says on stderr, unless quiet, how each went. Throws Interrupted after
// Ctrl-C, OutOfMemory when the disk is full; then what was finished stays.
SweepCounts run_children(const SweepPlan& plan, bool quiet);

// In the process of a child: loads the model, measures the plan's one configuration, writes its
// result.
void run_here(const SweepPlan& plan, const SweepOptions& options);

}  // namespace kvquant::cli
