// Which file each task reads, from what a user gives with --data.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "eval/eval_tasks.h"

namespace kvquant {

struct TaskFiles {
  std::map<std::string, std::string> files;  // task -> path
  std::vector<EvalTaskInfo> tasks;           // those that can be run
  std::vector<std::string> left_out;         // of a group, for want of a file
};

// `given` is a list of TASK=FILE, of folders, searched for TASK.jsonl, TASK.json and
// TASK/validation.jsonl (of leval_X and arc_X for X.jsonl and other published names, too), or one
// file where one task alone takes data. `names` are what the user asked for: tasks that need data
// and have none are left out when they came with a group of which others can be run. Throws
// std::invalid_argument naming what is missing or not needed.
TaskFiles find_task_files(const std::vector<std::string>& names,
                          const std::vector<std::string>& given);

}  // namespace kvquant
