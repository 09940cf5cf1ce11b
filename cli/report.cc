// kvquant report: hands over to the Python package, which draws (python/kvquant/report).
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string folder, output, model;
};

struct Place {
  fs::path root;    // the folder that has the package kvquant in it; empty: where Python looks
  fs::path python;  // the interpreter; empty: python3 of the PATH
};

// Of the package that this program is a part of, or of the build folder that it lies in.
Place find_package() {
  const fs::path folder = fs::read_symlink("/proc/self/exe").parent_path();
  std::error_code error;
  if (fs::exists(folder.parent_path() / "report" / "__main__.py", error)) {
    return {folder.parent_path().parent_path(), {}};
  }
  if (fs::exists(folder / "python" / "kvquant" / "report" / "__main__.py", error)) {
    const fs::path python = folder / "venv" / "bin" / "python";
    return {folder / "python", fs::exists(python, error) ? python : fs::path()};
  }
  return {};
}

int run(const Options& options) {
  const Place place = find_package();
  if (!place.root.empty()) {
    const char* known = std::getenv("PYTHONPATH");
    const std::string rest = known != nullptr && *known != '\0' ? ":" + std::string(known) : "";
    setenv("PYTHONPATH", (place.root.string() + rest).c_str(), 1);
  }
  std::vector<std::string> command = {place.python.empty() ? "python3" : place.python.string(),
                                      "-m", "kvquant.report"};
  if (!options.output.empty()) command.insert(command.end(), {"--output", options.output});
  if (!options.model.empty()) command.insert(command.end(), {"--model", options.model});
  command.insert(command.end(), {"--", options.folder});
  std::vector<char*> arguments;
  for (auto& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  std::fflush(nullptr);
  execvp(arguments[0], arguments.data());
  throw IoError(fmt::format("report needs Python and the package kvquant: can't run {}: {}",
                            command[0], std::strerror(errno)));
}

}  // namespace

void add_report(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("report", "figures, tables and a page of a folder of results");
  command->footer(
      "Reads what sweep wrote into DIR, and what perplexity and eval wrote there with --json.\n"
      "Needs the Python package with matplotlib: pip install '.[report]'.");
  command->add_option("DIR", options->folder, "folder of results")->required();
  command->add_option("-o,--output", options->output, "folder of the report (default: DIR/report)");
  command->add_option("--model", options->model, "which, where DIR has results of several");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
