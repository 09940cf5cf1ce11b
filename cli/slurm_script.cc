#include "cli/slurm_script.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "base/check.h"

namespace kvquant::cli {
namespace {

// A task that a signal ended is queued again (bash: 128 + signal): its configuration has no result
// yet, and those of others are files that no task touches. Not so where memory ran out on its node
// meanwhile: with the same memory it would end the same way.
constexpr const char* kBody = R"bash(
vmstat=/proc/vmstat
oom_kills() { sed -n 's/^oom_kill //p' "$vmstat"; }

code=0
kills=$(oom_kills)
"${command[@]}" --config "${names[SLURM_ARRAY_TASK_ID]}" || code=$?
if (( code > 128 && code != 130 )); then
  if [ "$(oom_kills)" != "$kills" ]; then
    echo "slurm: ended by signal $((code - 128)) as memory ran out: not queued again"
  elif (( ${SLURM_RESTART_COUNT:-0} < max_requeues )); then
    echo "slurm: ended by signal $((code - 128)), queued again"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
  fi
fi
exit "$code"
)bash";

void add_line(std::string& text, const char* option, const std::string& value) {
  if (value.empty()) return;
  const bool is_plain = std::all_of(value.begin(), value.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || (c != 0 && std::strchr("_-+=,.:@/", c) != nullptr);
  });
  check_arg(is_plain, fmt::format("--slurm-{}: \"{}\" has characters that Slurm doesn't take",
                                  option, value));
  const bool is_gpus = std::strcmp(option, "gpus") == 0;
  text += fmt::format("#SBATCH --{}{}\n", is_gpus ? "gres=gpu:" : std::string(option) + "=", value);
}

std::string bash_array(const char* name, const std::vector<std::string>& values) {
  std::string text = fmt::format("{}=(\n", name);
  for (const auto& value : values) text += "  " + shell_quoted(value) + "\n";
  return text + ")\n";
}

}  // namespace

std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string slurm_script(const SlurmRequest& request, const SlurmArray& array) {
  std::string text =
      "#!/bin/bash\n"
      "# A sweep of kvquant, one configuration a task. By hand: sbatch --chdir FOLDER THIS, with\n"
      "# the folder of the results, whose logs/ there has to be.\n"
      "#SBATCH --job-name=kvquant-sweep\n"
      "#SBATCH --output=logs/%A_%a.log\n"
      "#SBATCH --open-mode=append\n"
      "#SBATCH --requeue\n"
      "#SBATCH --ntasks=1\n";
  add_line(text, "account", request.account);
  add_line(text, "partition", request.partition);
  add_line(text, "clusters", request.clusters);
  add_line(text, "gpus", request.gpus);
  add_line(text, "mem", request.memory);
  add_line(text, "time", request.time);
  add_line(text, "cpus-per-task", fmt::format("{}", request.cpus));
  text += fmt::format("#SBATCH --array=0-{}", array.names.size() - 1);
  if (request.max_running > 0) text += fmt::format("%{}", request.max_running);
  text += fmt::format("\n\nset -u\ncd -- {} || exit 2\nmax_requeues={}\n",
                      shell_quoted(array.folder), request.max_requeues);
  return text + bash_array("command", array.command) + bash_array("names", array.names) + kBody;
}

}  // namespace kvquant::cli
