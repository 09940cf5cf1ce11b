// The text of a Slurm job array: one configuration of a sweep a task.
#pragma once

#include <string>
#include <vector>

namespace kvquant::cli {

// What sbatch is asked for; empty or 0: the cluster's own.
struct SlurmRequest {
  std::string account, partition;
  std::string clusters;  // one, or several of which Slurm takes one
  std::string gpus;      // a task, as in --gres=gpu:…
  std::string memory = "8G";
  std::string time = "02:00:00";
  int cpus = 2;          // of a task, and the threads of a measurement
  int max_running = 0;   // tasks at once
  int max_requeues = 3;  // of a task that was killed
};

struct SlurmFlags {
  bool slurm = false;    // submit what is missing
  bool collect = false;  // submit nothing, say how it is
  bool submit = true;    // or write the scripts alone
  int array_limit = 0;   // tasks an array; 0: as the cluster says
  SlurmRequest request;
  std::string given;  // one of the options above but the first three, if there was any
};

struct SlurmArray {
  std::string folder;                // where the command was given; paths are relative to it
  std::vector<std::string> command;  // of every task, without the configuration
  std::vector<std::string> names;    // of the configurations; task i measures names[i]
};

// For any POSIX shell, in single quotes.
std::string shell_quoted(const std::string& text);

// Throws std::invalid_argument for a request that a line of #SBATCH can't hold.
std::string slurm_script(const SlurmRequest& request, const SlurmArray& array);

}  // namespace kvquant::cli
