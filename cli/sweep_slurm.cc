#include "cli/sweep_slurm.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "bench/energy_profiler.h"
#include "cli/slurm_submissions.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;
using Items = std::vector<const SweepPlan::Item*>;

// FOLDER/slurm/: scripts, and what was submitted.
fs::path jobs_folder(const SweepPlan& plan) { return fs::absolute(plan.folder()) / "slurm"; }

// The state of every result that some job was submitted for; the youngest job counts.
struct TaskStates {
  std::map<std::string, std::string> queued, ended, logs;  // by stem
};

TaskStates task_states(const SweepPlan& plan) {
  TaskStates out;
  for (const auto& [job, time, stems] : read_submissions(jobs_folder(plan).string())) {
    const SlurmStates states = job_states(job);
    for (size_t i = 0; i < stems.size(); ++i) {
      const auto task = static_cast<int64_t>(i);
      if (const auto it = states.queued.find(task); it != states.queued.end()) {
        out.queued[stems[i]] = it->second;
      } else if (const auto old = states.ended.find(task); old != states.ended.end()) {
        out.ended[stems[i]] = old->second;
        out.logs[stems[i]] = fmt::format("{}/logs/{}_{}.log", plan.folder(), job.number, task);
      }
    }
  }
  return out;
}

std::string state_of(const SweepPlan& plan, const SweepPlan::Item& item, const TaskStates& states) {
  if (plan.results().state(item.stem) == ResultState::kFinished) {
    return plan.results().read(item.stem).at("results")[0].at("status");
  }
  if (const auto it = states.queued.find(item.stem); it != states.queued.end()) return it->second;
  const std::string failure = plan.folder() + "/" + item.stem + ".failed.json";
  if (const auto it = states.ended.find(item.stem); it != states.ended.end()) {
    const std::string advice = it->second == "OUT_OF_MEMORY" ? " (--slurm-mem gives more)" : "";
    const std::string& where = fs::exists(failure) ? failure : states.logs.at(item.stem);
    return it->second + advice + (fs::exists(where) ? ", see " + where : "");
  }
  return fs::exists(failure) ? "failed, see " + failure : "missing";
}

void submit(const SweepPlan& plan, const SlurmFlags& flags, const Items& items, bool quiet) {
  std::error_code error;
  fs::create_directories(jobs_folder(plan), error);
  fs::create_directories(fs::absolute(plan.folder()) / "logs", error);
  const auto limit = static_cast<size_t>(flags.array_limit > 0 ? flags.array_limit
                                         : flags.submit ? max_array_tasks(flags.request.clusters)
                                                        : 1001);
  int64_t num_scripts = 0;
  for (size_t begin = 0; begin < items.size(); begin += limit) {
    SlurmArray array{fs::current_path().string(), plan.task_command(), {}};
    std::vector<std::string> stems;
    for (size_t i = begin; i < std::min(items.size(), begin + limit); ++i) {
      array.names.push_back(items[i]->name);
      stems.push_back(items[i]->stem);
    }
    std::string script;
    do {
      script = (jobs_folder(plan) / fmt::format("array_{}.sh", ++num_scripts)).string();
    } while (fs::exists(script));
    write_file_atomic(script, slurm_script(flags.request, array));
    if (!flags.submit) {
      if (!quiet) fmt::print(stderr, "sweep: {} ({} tasks)\n", script, array.names.size());
      continue;
    }
    const SlurmJob job = submit_job(script, fs::absolute(plan.folder()).string());
    write_submission(jobs_folder(plan).string(), {job, utc_timestamp(), stems});
    if (!quiet) {
      fmt::print(stderr, "sweep: job {}, {} tasks: {}\n", job.number, stems.size(), script);
    }
  }
}

}  // namespace

int64_t run_on_slurm(const SweepPlan& plan, const SlurmFlags& flags, bool quiet) {
  const TaskStates states = task_states(plan);
  Items left;
  int64_t num_failed = 0;
  for (const auto& item : plan.items()) {
    const std::string state = state_of(plan, item, states);
    const bool is_finished = plan.results().state(item.stem) == ResultState::kFinished;
    const bool is_queued = states.queued.count(item.stem) > 0;
    if (!is_finished && !is_queued) left.push_back(&item);
    if (!is_finished && !is_queued && state != "missing") ++num_failed;
    if (!quiet && !is_finished) fmt::print(stderr, "sweep: {}: {}\n", item.name, state);
  }
  if (!flags.collect && !left.empty()) submit(plan, flags, left, quiet);
  plan.results().write_index();
  return num_failed;
}

}  // namespace kvquant::cli
