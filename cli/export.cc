// kvquant export: hands over to the Python package (python/kvquant/export).
#include <memory>

#include "cli/commands.h"
#include "cli/python_package.h"

namespace kvquant::cli {
namespace {

struct Options {
  std::string folder, store, output, project = "kvquant";
};

int run(const Options& options) {
  become_python("export", "kvquant.export",
                {"--to", options.store, "--output", options.output, "--project", options.project,
                 "--", options.folder});
}

}  // namespace

void add_export(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command =
      app.add_subcommand("export", "results as Weights & Biases offline runs or for MLflow");
  command->footer(
      "A run for every result in DIR, with its configuration, figures and provenance; what FOLDER\n"
      "has already is left alone. Needs the Python package: pip install '.[wandb]' or "
      "'.[mlflow]'.");
  command->add_option("DIR", options->folder, "folder of results")->required();
  command->add_option("--to", options->store, "wandb or mlflow")
      ->check(CLI::IsMember({"wandb", "mlflow"}))
      ->required();
  command->add_option("-o,--output", options->output, "folder of the store")->required();
  command->add_option("--project", options->project, "project or experiment")
      ->capture_default_str();
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
