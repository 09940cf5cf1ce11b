// The programs of Slurm: what was submitted, and what has become of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace kvquant::cli {

// The number of the job. Runs in `folder`, which its logs are relative to. Throws
// std::invalid_argument when there is no sbatch, or with its message when it refuses.
std::string submit_job(const std::string& script, const std::string& folder);

// Slurm's state ("PENDING", "RUNNING", "OUT_OF_MEMORY", …) of every task of an array, by squeue,
// and by sacct for those that squeue has forgotten. Accounting may be off: then they are left out.
struct SlurmStates {
  std::map<int64_t, std::string> queued, ended;
};
SlurmStates job_states(const std::string& job);

// Tasks that an array may have: MaxArraySize, or its default where scontrol doesn't tell.
int64_t max_array_tasks();

}  // namespace kvquant::cli
