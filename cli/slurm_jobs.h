// The programs of Slurm: what was submitted, and what has become of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace kvquant::cli {

// Numbers are a cluster's own, and begin anew when it is set up again.
struct SlurmJob {
  std::string number;
  std::string cluster;  // empty: the one that Slurm's programs ask by themselves
};

// Runs in `folder`, which its logs are relative to. Throws std::invalid_argument when there is no
// sbatch, or with its message when it refuses.
SlurmJob submit_job(const std::string& script, const std::string& folder);

// Slurm's state ("PENDING", "RUNNING", "OUT_OF_MEMORY", …) of every task of an array, by squeue,
// and by sacct for those that squeue has forgotten. Accounting may be off: then they are left out.
struct SlurmStates {
  std::map<int64_t, std::string> queued, ended;
};
SlurmStates job_states(const SlurmJob& job);

// Tasks that an array may have: MaxArraySize of a cluster (empty as above), or its default where
// scontrol doesn't tell.
int64_t max_array_tasks(const std::string& cluster);

}  // namespace kvquant::cli
