// What a sweep has submitted to Slurm: a file for every job, job_NUMBER[_CLUSTER]_TIME.json.
#pragma once

#include <string>
#include <vector>

#include "cli/slurm_jobs.h"

namespace kvquant::cli {

struct SlurmSubmission {
  SlurmJob job;
  std::string time;                  // UTC
  std::vector<std::string> results;  // their stems; task i is to write results[i]
};

// Throws IoError, OutOfMemory.
void write_submission(const std::string& folder, const SlurmSubmission& submission);

// The oldest first. Of several jobs with one number the youngest alone: Slurm tells of no other.
// Throws FormatError for a file that write_submission has not written.
std::vector<SlurmSubmission> read_submissions(const std::string& folder);

}  // namespace kvquant::cli
