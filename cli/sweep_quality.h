// Quality beside the speed of a sweep: what its grid asks for (bench/sweep_quality.h), by the
// commands calibrate, perplexity and allocate, each in a process of its own that writes one file.
// What is there is not run again.
#pragma once

#include <string>
#include <vector>

#include "cli/sweep_plan.h"

namespace kvquant::cli {

struct QualityStep {
  std::string name;                  // "perplexity, lloyd"
  std::string needs;                 // file of an earlier step; empty: none
  std::string output;                // the step is finished when this file is there
  std::vector<std::string> command;  // that writes it
  std::string folder;                // for what else it writes
};

// None where the grid doesn't ask for quality. Throws FormatError for mistakes in the grid, with
// the path to the key, and for files of finished steps that are no results.
std::vector<QualityStep> quality_steps(const SweepOptions& options, const SweepPlan& plan);

// Runs those that are missing, and returns how many failed. Says on stderr, unless quiet, how each
// went. Throws Interrupted after Ctrl-C, OutOfMemory when the disk is full.
int64_t run_quality(const std::vector<QualityStep>& steps, bool quiet);

// A table of what perplexity found; empty where it found nothing yet.
std::string quality_table(const std::vector<QualityStep>& steps);

}  // namespace kvquant::cli
