// kvquant bench: speed of the whole model, or of single kernels beside the machine's peaks.
#include <fmt/format.h>

#include <memory>

#include "base/check.h"
#include "bench/model_bench.h"
#include "cli/bench_alloc.h"
#include "cli/bench_kernels.h"
#include "cli/commands.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  ModelBenchOptions bench;
  std::string output = "md";
};

std::string test_name(const ModelBenchRow& row) {
  std::string name =
      row.n_prompt > 0 ? fmt::format("pp{}", row.n_prompt) : fmt::format("tg{}", row.n_gen);
  if (row.n_depth > 0) name += fmt::format(" @ d{}", row.n_depth);
  if (row.batch > 1) name += fmt::format(" x {}", row.batch);
  return name;
}

int run(const Options& options) {
  check_arg(options.common.context == 0, "bench has no --ctx: -d, -p and -n say how much is read");
  const auto specs = specs_of(options.common, {"fp16"});
  Model model = load_model(options.common);
  for (const CacheSpec& spec : specs) {
    check_spec_fits(spec, static_cast<int>(model.config().num_layers),
                    static_cast<int>(model.config().head_dim));
  }
  tell_expanded_layers(options.common, specs, model);
  ModelBenchOptions bench = options.bench;
  bench.ubatch = options.common.ubatch;
  bench.seed = options.common.seed;
  const auto rows = bench_model(model, specs, bench, progress_on_stderr(options.common, "bench"));

  Json config = common_config(options.common, model);
  config["repetitions"] = bench.repetitions;
  Json document = make_document("bench", model_info(model), config);
  std::vector<std::vector<std::string>> table = {
      {"model", "cache", "test", "tokens/s", "cache bytes"}};
  for (const ModelBenchRow& row : rows) {
    Json result = spec_fields(row.spec, CacheMode::kAsServed);
    result.update({{"n_prompt", row.n_prompt},
                   {"n_gen", row.n_gen},
                   {"n_depth", row.n_depth},
                   {"batch", row.batch},
                   {"threads", model.pool().num_threads()},
                   {"tokens_per_s_mean", row.tokens_per_s_mean},
                   {"tokens_per_s_sd", row.tokens_per_s_sd},
                   {"samples_s", row.samples_s},
                   {"cache_bytes", row.cache_bytes},
                   {"peak_rss_bytes", row.peak_rss_bytes}});
    document["results"].push_back(result);
    table.push_back({model.config().name, row.spec.text, test_name(row),
                     fmt::format("{:.1f} ± {:.1f}", row.tokens_per_s_mean, row.tokens_per_s_sd),
                     format_bytes(row.cache_bytes)});
  }
  write_json(options.common, document);
  if (json_on_stdout(options.common)) return kDone;
  if (options.output == "json") {
    fmt::print("{}\n", document.dump(2));
  } else {
    fmt::print("{}", format_table(table, TableStyle::kMarkdown));
  }
  return kDone;
}

}  // namespace

void add_bench(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("bench", "speed of prefill and decoding, or of kernels");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags);
  const auto list = [&](const char* flag, auto& value, const char* help) {
    command->add_option(flag, value, help)
        ->delimiter(',')
        ->check(at_least(0))
        ->capture_default_str();
  };
  list("-p,--n-prompt", options->bench.prompt_sizes, "prompt lengths, e.g. 512,4096; 0: none");
  list("-n,--n-gen", options->bench.gen_sizes, "generated tokens, e.g. 32,128; 0: none");
  list("-d,--n-depth", options->bench.depths, "tokens in the cache before the test");
  list("-b,--batch", options->bench.batches, "sequences side by side");
  command->add_option("-r,--repetitions", options->bench.repetitions, "repetitions")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("-o,--output", options->output, "md or json")
      ->check(CLI::IsMember({"md", "json"}))
      ->capture_default_str();
  add_bench_kernels(*command, exit_code);
  add_bench_alloc(*command, exit_code);
  command->callback([options, command, &exit_code] {
    if (command->get_subcommands().empty()) exit_code = run(*options);
  });
}

}  // namespace kvquant::cli
