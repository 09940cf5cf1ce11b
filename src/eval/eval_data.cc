#include "eval/eval_data.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/quote.h"

namespace kvquant {
namespace {

// Names that a task's file goes by, without ending.
std::vector<std::string> file_names(const EvalTaskInfo& task) {
  static const std::map<std::string, std::vector<std::string>> published = {
      {"lambada", {"lambada_test", "lambada_test_plain_text"}},
      {"hellaswag", {"hellaswag_val"}},
      {"piqa", {"valid"}},
      {"arc_easy", {"ARC-Easy-Test"}},
      {"arc_challenge", {"ARC-Challenge-Test"}}};
  std::vector<std::string> names = {task.name, task.name + "/validation", task.name + "/test"};
  if (task.group == "leval") {
    names.push_back(task.name.substr(std::string("leval_").size()));
    names.push_back(names.back() + "_longchat");
  }
  const auto found = published.find(task.name);
  if (found != published.end()) {
    names.insert(names.end(), found->second.begin(), found->second.end());
  }
  return names;
}

std::string find_in_folder(const std::string& folder, const EvalTaskInfo& task) {
  for (const std::string& name : file_names(task)) {
    for (const char* ending : {".jsonl", ".json"}) {
      const std::string path = folder + "/" + name + ending;
      if (std::filesystem::is_regular_file(path)) return path;
    }
  }
  return "";
}

bool takes_data(const EvalTaskInfo& task) { return task.data != TaskData::kNone; }

void add_given(TaskFiles& out, const std::string& given) {
  const auto takers = std::count_if(out.tasks.begin(), out.tasks.end(), takes_data);
  if (std::filesystem::is_directory(given)) {
    for (const EvalTaskInfo& task : out.tasks) {
      if (!takes_data(task) || out.files.contains(task.name)) continue;
      const std::string path = find_in_folder(given, task);
      if (!path.empty()) out.files[task.name] = path;
    }
    return;
  }
  const size_t equals = given.find('=');
  if (equals != std::string::npos) {
    const std::string name = given.substr(0, equals);
    const auto task = std::find_if(out.tasks.begin(), out.tasks.end(),
                                   [&](const EvalTaskInfo& info) { return info.name == name; });
    if (task != out.tasks.end() && takes_data(*task)) {
      check_arg(out.files.emplace(name, given.substr(equals + 1)).second,
                "--data names a file for " + name + " twice");
      return;
    }
    check_arg(std::filesystem::exists(given),
              "--data " + quote(given) + ": " + quote(name) +
                  " is not one of the tasks to be run, or takes no data");
  }
  check_arg(takers == 1, "--data " + quote(given) + " is a file, but " + std::to_string(takers) +
                             " tasks take data: say TASK=FILE, or name a folder");
  const auto taker = std::find_if(out.tasks.begin(), out.tasks.end(), takes_data);
  check_arg(out.files.emplace(taker->name, given).second,
            "--data names a file for " + taker->name + " twice");
}

}  // namespace

TaskFiles find_task_files(const std::vector<std::string>& names,
                          const std::vector<std::string>& given) {
  TaskFiles out;
  out.tasks = expand_tasks(names);
  for (const std::string& item : given) add_given(out, item);
  std::vector<EvalTaskInfo> kept;
  for (const EvalTaskInfo& task : out.tasks) {
    if (task.data != TaskData::kRequired || out.files.contains(task.name)) {
      kept.push_back(task);
      continue;
    }
    const bool is_named = std::find(names.begin(), names.end(), task.name) != names.end();
    const bool has_company =
        std::any_of(out.tasks.begin(), out.tasks.end(), [&](const EvalTaskInfo& other) {
          return other.group == task.group &&
                 (other.data != TaskData::kRequired || out.files.contains(other.name));
        });
    check_arg(!is_named && has_company,
              task.name + ": there is no data for it: give --data " + task.name + "=FILE");
    out.left_out.push_back(task.name);
  }
  out.tasks = std::move(kept);
  return out;
}

}  // namespace kvquant
