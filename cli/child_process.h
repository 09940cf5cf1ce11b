// A program that runs beside this one until it is waited for.
#pragma once

#include <string>
#include <vector>

namespace kvquant::cli {

struct ChildOutcome {
  int exit_code = 0;    // when it ended by itself
  int signal = 0;       // that ended it; 0: none
  std::string message;  // what it last wrote to stderr, when that was kept
};

enum class ChildStderr {
  kShared,
  kKept,
  kKeptAlone,  // and what it writes to stdout goes nowhere
};

// Runs it with this process's streams, or with its stderr kept, and waits. A program that can't be
// found: std::invalid_argument. The child is killed when this process ends before it does. Ctrl-C
// reaches both.
ChildOutcome run_child(const std::vector<std::string>& command, ChildStderr err);

}  // namespace kvquant::cli
