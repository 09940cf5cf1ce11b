// What a sweep is to do: its configurations, the names of their results, and the command that
// measures one of them in a process of its own.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/sweep_grid.h"
#include "bench/sweep_results.h"
#include "bench/sweep_run.h"
#include "cli/common.h"
#include "cli/energy_flags.h"
#include "cli/slurm_script.h"

namespace kvquant::cli {

struct SweepOptions {
  CommonOptions common;
  EnergyFlags energy;
  SlurmFlags slurm;
  std::string grid;                  // file
  std::vector<std::string> configs;  // names
  std::string output;
  std::string memory_budget;
  bool quick = false, list = false;
  bool here = false;  // measure the one configuration in this process
  bool task = false;  // of a job array: the index is left to whoever collects
  // In place of the defaults, or of those of --quick.
  std::optional<int> warmups, min_repetitions, max_repetitions;
  std::optional<double> target_error, max_seconds;
};

SweepLimits limits_of(const SweepOptions& options);

class SweepPlan {
 public:
  struct Item {
    SweepPoint point;
    std::string name, stem;
  };

  // Opens the model's file, without loading it, and makes the folder when all else is in order.
  // Throws FormatError, IoError, std::invalid_argument for bad grids, names, specs and folders, and
  // when no configuration fits the model.
  explicit SweepPlan(const SweepOptions& options);

  const std::vector<Item>& items() const { return items_; }
  int64_t num_too_long() const { return num_too_long_; }  // left out: the model reads less
  const SweepResults& results() const { return *results_; }

  // A document for a result of this item; of a model that was not loaded.
  Json document(const Item& item) const;
  const Json& configuration() const { return configuration_; }
  std::vector<std::string> command(const Item& item) const;
  std::vector<std::string> task_command() const;  // of a job array, --config to be added
  // Of another command, with the same model, threads, arithmetic and seed.
  std::vector<std::string> command(const std::string& name) const;
  // What they have: every spec of the grid once, those of prompts that are too long included.
  const std::vector<std::string>& specs() const { return specs_; }
  const std::string& folder() const { return options_.output; }
  bool is_task() const { return options_.task; }

 private:
  void add_engine(std::vector<std::string>& command) const;
  void add_settings(std::vector<std::string>& command) const;

  const SweepOptions& options_;
  Json model_, configuration_;
  std::optional<SweepResults> results_;  // set by the constructor
  std::vector<Item> items_;
  std::vector<std::string> specs_;
  int64_t num_too_long_ = 0;
};

}  // namespace kvquant::cli
