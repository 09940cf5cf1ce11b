#include "cli/slurm_jobs.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <system_error>
#include <vector>

#include "base/check.h"
#include "cli/slurm_script.h"

namespace kvquant::cli {
namespace {

constexpr int64_t kDefaultMaxArraySize = 1001;  // slurm.conf(5)
constexpr int kNotFound = 127;                  // of a shell

struct ShellOutcome {
  int exit_code;
  std::string out;
};

ShellOutcome run_shell(const std::string& command) {
  std::fflush(nullptr);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) {
    throw std::system_error(errno, std::generic_category(), "cannot start a shell");
  }
  std::string out;
  std::array<char, 4096> bytes;
  for (size_t n; (n = fread(bytes.data(), 1, bytes.size(), pipe)) > 0;) out.append(bytes.data(), n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, out};
}

std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (size_t at; (at = text.find('\n')) != std::string::npos;) text.replace(at, 1, "; ");
  return text;
}

std::string on_cluster(const std::string& cluster) {
  return cluster.empty() ? "" : " -M " + shell_quoted(cluster);
}

// Of the last line "JOB" or "JOB;CLUSTER": there may be others with warnings. No number: none.
SlurmJob job_in(const std::string& text) {
  SlurmJob job;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t end = std::min(line.find_first_not_of("0123456789"), line.size());
    const bool has_cluster = end < line.size() && line[end] == ';';
    if (end == 0 || (end < line.size() && !has_cluster)) continue;
    job = {line.substr(0, end), has_cluster ? line.substr(end + 1) : ""};
  }
  return job;
}

// Of "5", "[2-4,7]", "[0-6:2%1]" (steps; at most one at once): each task. Nothing for other text.
std::vector<int64_t> tasks_in(std::string text) {
  std::erase_if(text, [](char c) { return c == '[' || c == ']'; });
  std::istringstream parts(text.substr(0, text.find('%')));
  std::vector<int64_t> tasks;
  for (std::string part; std::getline(parts, part, ',');) {
    int64_t first = 0, last = 0, step = 1;
    const int count =
        std::sscanf(part.c_str(), "%" SCNd64 "-%" SCNd64 ":%" SCNd64, &first, &last, &step);
    if (count < 1 || step < 1) continue;
    for (int64_t task = first; task <= (count > 1 ? last : first); task += step) {
      tasks.push_back(task);
    }
  }
  return tasks;
}

// Lines "JOB_TASKS STATE …": sacct has tasks that were cancelled in the queue together, with some
// that ran since and have lines of their own.
std::map<int64_t, std::string> states_in(const std::string& text) {
  std::map<int64_t, std::string> states;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string id, state;
    if (!(words >> id >> state)) continue;
    const size_t underscore = id.find('_');
    if (underscore == std::string::npos) continue;
    const std::string which = id.substr(underscore + 1);
    for (const int64_t task : tasks_in(which)) {
      if (which[0] == '[') states.emplace(task, state);
      if (which[0] != '[') states[task] = state;
    }
  }
  return states;
}

}  // namespace

SlurmJob submit_job(const std::string& script, const std::string& folder) {
  const ShellOutcome outcome = run_shell("sbatch --parsable --chdir " + shell_quoted(folder) + " " +
                                         shell_quoted(script) + " 2>&1");
  check_arg(outcome.exit_code != kNotFound,
            "no sbatch on PATH: run this where Slurm is, or write the scripts alone with "
            "--slurm-dry-run");
  check_arg(outcome.exit_code == 0, "sbatch refused " + script + ": " + one_line(outcome.out));
  SlurmJob job = job_in(outcome.out);
  check_arg(!job.number.empty(), "sbatch gave no number of a job: " + one_line(outcome.out));
  return job;
}

SlurmStates job_states(const SlurmJob& job) {
  SlurmStates states;
  const std::string which = " -j " + shell_quoted(job.number) + on_cluster(job.cluster);
  const ShellOutcome queue = run_shell("squeue -h -r -o '%F_%K %T'" + which + " 2>&1");
  // Of a job that Slurm has forgotten nothing is queued; when Slurm doesn't answer, who knows.
  const bool is_forgotten = queue.out.find("Invalid job id") != std::string::npos;
  check_arg(queue.exit_code == 0 || queue.exit_code == kNotFound || is_forgotten,
            "squeue failed, so what is queued isn't known: " + one_line(queue.out));
  if (queue.exit_code == 0) states.queued = states_in(queue.out);
  states.ended = states_in(
      run_shell("sacct -n -X -P --delimiter=' ' -o JobID,State" + which + " 2>/dev/null").out);
  return states;
}

int64_t max_array_tasks(const std::string& cluster) {
  std::istringstream lines(
      run_shell("scontrol show config" + on_cluster(cluster) + " 2>/dev/null").out);
  for (std::string key, equals, value, line; std::getline(lines, line);) {
    std::istringstream words(line);
    if (words >> key >> equals >> value && key == "MaxArraySize") {
      const int64_t size = std::strtoll(value.c_str(), nullptr, 10);
      return size > 0 ? size : kDefaultMaxArraySize;
    }
  }
  return kDefaultMaxArraySize;
}

}  // namespace kvquant::cli
