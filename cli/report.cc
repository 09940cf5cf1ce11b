// kvquant report: hands over to the Python package, which draws (python/kvquant/report).
#include <memory>

#include "cli/commands.h"
#include "cli/python_package.h"

namespace kvquant::cli {
namespace {

struct Options {
  std::string folder, output, model;
};

int run(const Options& options) {
  std::vector<std::string> arguments;
  if (!options.output.empty()) arguments.insert(arguments.end(), {"--output", options.output});
  if (!options.model.empty()) arguments.insert(arguments.end(), {"--model", options.model});
  arguments.insert(arguments.end(), {"--", options.folder});
  become_python("report", "kvquant.report", arguments);
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
