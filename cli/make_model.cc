// kvquant make-model: a random checkpoint, for speed at any size.
#include "model/make_model.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

struct Options {
  MakeModelOptions model;
  std::string folder;
  bool quiet = false;
};

}  // namespace

void add_make_model(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "make-model", "write a random Llama checkpoint with realistic key outlier channels");
  MakeModelOptions& m = options->model;
  const auto number = [&](const char* flag, auto& value, const char* help) {
    command->add_option(flag, value, help)->check(at_least(1))->capture_default_str();
  };
  number("--layers", m.num_layers, "transformer layers");
  number("--hidden", m.hidden, "width of the residual stream");
  number("--heads", m.num_q_heads, "query heads");
  number("--kv-heads", m.num_kv_heads, "KV heads");
  number("--head-dim", m.head_dim, "channels of a head, a multiple of 8");
  number("--ffn", m.ffn, "width of the MLP");
  number("--vocab", m.vocab_size, "vocabulary");
  number("--ctx", m.max_context, "context in tokens");
  command->add_option("--seed", m.seed, "random seed")->capture_default_str();
  command->add_option("-o,--output", options->folder, "folder to write")->required();
  command->add_flag("-q,--quiet", options->quiet, "no logs");
  command->callback([options, &exit_code] {
    CommonOptions common;
    common.quiet = options->quiet;
    make_model(options->model, options->folder, progress_on_stderr(common, "make-model"));
    if (!options->quiet) fmt::print(stderr, "wrote {}\n", options->folder);
    exit_code = kDone;
  });
}

}  // namespace kvquant::cli
