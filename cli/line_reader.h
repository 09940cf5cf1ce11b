// Lines of standard input for an interactive command: Ctrl-C ends the wait for one.
#pragma once

#include <optional>
#include <string>

namespace kvquant::cli {

class LineReader {
 public:
  // Without its newline. Nothing at the end of the input, or once was_interrupted().
  std::optional<std::string> next();

 private:
  std::string pending_;  // read, but not returned yet
  bool at_end_ = false;
};

}  // namespace kvquant::cli
