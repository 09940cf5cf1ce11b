// kvquant sweep: a grid of prompts, batches and cache specs, measured one by one into a folder.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "base/check.h"
#include "cli/commands.h"
#include "cli/sweep_children.h"
#include "cli/sweep_plan.h"
#include "cli/sweep_quality.h"
#include "cli/sweep_slurm.h"

namespace kvquant::cli {
namespace {

std::string number(const Json& result, const char* key, const char* format) {
  const auto it = result.find(key);
  if (it == result.end() || !it->is_number()) return "-";
  return fmt::format(fmt::runtime(format), it->get<double>());
}

std::string bytes(const Json& result, const char* key) {
  const auto it = result.find(key);
  return it == result.end() || !it->is_number() ? "-" : format_bytes(it->get<int64_t>());
}

std::vector<std::string> row_of(const Json& result) {
  const std::string status = result.at("status");
  return {result.at("spec"),
          fmt::format("{}", result.at("n_prompt").get<int64_t>()),
          number(result, "batch", "{:.0f}"),
          number(result, "n_gen", "{:.0f}"),
          number(result, "prefill_tokens_per_s", "{:.1f}"),
          number(result, "decode_tokens_per_s", "{:.1f}"),
          number(result, "time_to_first_token_s", "{:.3f}"),
          number(result, "requests_per_s", "{:.3g}"),
          bytes(result, "cache_bytes"),
          bytes(result, "peak_cache_bytes"),
          number(result, "decode_joules_per_token", "{:.4g}"),
          status == "ok" && result.contains("is_largest_batch") ? "largest batch" : status};
}

// Of those configurations of the plan that have results.
void print_results(const SweepPlan& plan, const SweepOptions& options) {
  std::vector<std::vector<std::string>> rows = {{"cache", "prompt", "batch", "gen", "prefill t/s",
                                                 "decode t/s", "first token s", "requests/s",
                                                 "cache bytes", "cache peak", "J/token", "status"}};
  Json document = make_document("sweep", nullptr, plan.configuration());
  std::string energy;
  for (const auto& item : plan.items()) {
    if (plan.results().state(item.stem) == ResultState::kMissing) continue;
    const Json one = plan.results().read(item.stem);
    const Json& result = one.at("results")[0];
    document["model"] = one.at("model");
    document["results"].push_back(result);
    rows.push_back(row_of(result));
    if (result.contains("energy_note")) {
      energy = result.at("energy").get<std::string>() + " (" +
               result.at("energy_note").get<std::string>() + ")";
    }
  }
  write_json(options.common, document);
  if (json_on_stdout(options.common)) return;
  fmt::print("{}", format_table(rows, TableStyle::kMarkdown));
  if (!energy.empty()) fmt::print("energy: {}\n", energy);
}

void print_list(const SweepPlan& plan, const std::vector<QualityStep>& quality) {
  for (const auto& item : plan.items()) {
    const bool is_finished = plan.results().state(item.stem) == ResultState::kFinished;
    fmt::print("{} {}\n", is_finished ? "finished" : "missing ", item.name);
  }
  for (const auto& step : quality) {
    fmt::print("{} {}\n", std::filesystem::exists(step.output) ? "finished" : "missing ",
               step.name);
  }
}

// Speed, then quality, each in processes of its own; what is there is skipped.
int measure(const SweepPlan& plan, const std::vector<QualityStep>& quality,
            const SweepOptions& options) {
  SweepCounts counts;
  int64_t num_failed_quality = 0;
  try {
    counts = run_children(plan, options.common.quiet);
    num_failed_quality = run_quality(quality, options.common.quiet);
  } catch (const Interrupted&) {
    fmt::print(stderr, "sweep: stopped; the same command goes on from here\n");
    throw;
  }
  print_results(plan, options);
  if (!json_on_stdout(options.common)) fmt::print("{}", quality_table(quality));
  if (!options.common.quiet) {
    fmt::print(stderr, "sweep: {} measured, {} out of memory, {} failed, {} were there; {}\n",
               counts.measured, counts.out_of_memory, counts.failed, counts.skipped,
               options.output);
  }
  return counts.failed + num_failed_quality > 0 ? kCheckFailed : kDone;
}

int run(SweepOptions& options) {
  // The nodes may have other cores than this machine: what a task is given decides.
  const bool is_slurm = options.slurm.slurm || options.slurm.collect;
  check_arg(!options.slurm.slurm || !options.slurm.collect,
            "--collect submits nothing: without --slurm");
  check_arg(is_slurm || options.slurm.given.empty(),
            options.slurm.given + " needs --slurm, --slurm-dry-run or --collect");
  if (is_slurm && options.common.threads == 0) {
    options.common.threads = options.slurm.request.cpus;
  }
  const SweepPlan plan(options);
  if (options.here) {
    run_here(plan, options);
    return kDone;
  }
  if (plan.num_too_long() > 0) {
    fmt::print(stderr,
               "kvquant: {} configurations are longer than the model's context and left out\n",
               plan.num_too_long());
  }
  const std::vector<QualityStep> quality = quality_steps(options, plan);
  if (options.list) {
    print_list(plan, quality);
    return kDone;
  }
  if (!is_slurm) check_devices(options.common, RunsOn::kCpuOrGpu);
  if (!is_slurm) return measure(plan, quality, options);
  const int64_t num_failed = run_on_slurm(plan, options.slurm, options.common.quiet);
  print_results(plan, options);
  if (!quality.empty()) {
    fmt::print(
        stderr,
        "sweep: quality is not submitted: when the tasks are done, the same command with -t {} "
        "and without --slurm measures it alone\n",
        options.common.threads);
  }
  return num_failed > 0 && options.slurm.collect ? kCheckFailed : kDone;
}

constexpr const char* kFooter =
    "A grid is JSON: {\"prompt\": [512, 4096], \"batch\": [1, 8], \"kv\": [\"fp16\", "
    "\"nuq3-1%\"]},\noptionally gen, block, sink, recent, quality (docs/sweeps.md). Every "
    "configuration is measured in a process\nof its own and written to a file of its own; those "
    "that have one are skipped, so an interrupted sweep is\nsimply started again. Out of memory is "
    "a result. Exit code 1: some failed otherwise, see *.failed.json.";

void add_limit_flags(CLI::App& command, SweepOptions& options) {
  command.add_option("--warmup", options.warmups, "repetitions that don't count (default: 5)")
      ->check(CLI::Range(1, 1000));
  command
      .add_option("--min-repetitions", options.min_repetitions, "that count, at least (default: 5)")
      ->check(CLI::Range(1, 100000));
  command.add_option("--max-repetitions", options.max_repetitions, "and at most (default: 50)")
      ->check(CLI::Range(1, 100000));
  command
      .add_option("--target-error", options.target_error,
                  "repeat until the standard error of the time is below this share (default: 0.02)")
      ->check(amount());
  command
      .add_option("--max-seconds", options.max_seconds,
                  "of warming up, and again of what counts, of prefill and of decoding each "
                  "(default: 60; 0: no limit)")
      ->check(amount());
}

void add_slurm_flags(CLI::App& command, SlurmFlags& flags) {
  SlurmRequest& request = flags.request;
  command.add_flag("--slurm", flags.slurm,
                   "submit what has no result as Slurm job arrays, a configuration a task");
  command.add_flag("--collect", flags.collect,
                   "submit nothing: index, table and the states of what is still missing");
  command.add_flag_callback(
      "--slurm-dry-run", [&flags] { flags.slurm = true, flags.submit = false; },
      "write the scripts to OUTPUT/slurm and submit nothing");
  const auto option = [&](const char* name, auto& value, const char* text) {
    return command.add_option(name, value, text)->each([&flags, name](const std::string&) {
      flags.given = name;
    });
  };
  option("--slurm-account", request.account, "account of the tasks");
  option("--slurm-partition", request.partition, "partition of the tasks");
  option("--slurm-clusters", request.clusters, "cluster of the tasks, or several to choose from");
  option("--slurm-gpus", request.gpus, "GPUs of a task, e.g. 1 or a100:1");
  option("--slurm-mem", request.memory, "memory of a task")->capture_default_str();
  option("--slurm-time", request.time, "time of a task")->capture_default_str();
  option("--slurm-cpus", request.cpus, "cores of a task, and its --threads")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  option("--slurm-max-running", request.max_running, "tasks at once (default: any)")
      ->check(CLI::Range(1, 1000000));
  option("--slurm-array-limit", flags.array_limit,
         "tasks an array, the rest in further ones (default: MaxArraySize)")
      ->check(CLI::Range(1, 4000001));
}

}  // namespace

void add_sweep(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<SweepOptions>();
  auto* command =
      app.add_subcommand("sweep", "speed, memory and energy over a grid, into a folder of results");
  command->footer(kFooter);
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags);
  for (const char* flag : {"--kv", "--ctk", "--ctv", "--preset", "--ctx"}) {
    command->remove_option(command->get_option(flag));
  }
  command->add_option("--grid", options->grid, "file of the grid (grids/ has some)");
  command
      ->add_option("--config", options->configs,
                   "a configuration by name, e.g. len16384_batch16_nuq3-1% (repeat for more)")
      ->allow_extra_args(false);
  command->add_option("-o,--output_path", options->output, "folder of the results")
      ->required()
      ->check([](const std::string& path) {
        return path.empty() ? "the path of the results is empty" : std::string();
      });
  command->add_flag("--quick", options->quick,
                    "few repetitions; without --grid and --config a small grid of its own");
  command->add_option("--memory-budget", options->memory_budget,
                      "bytes for the caches, e.g. 2GiB: larger ones are out of memory, and the "
                      "largest batch of every prompt and spec is measured");
  command->add_flag("--list", options->list, "say which configurations have results, run nothing");
  command->add_flag("--here", options->here)->group("");  // for the processes of a sweep
  command->add_flag("--task", options->task)->group("");  // of a job array
  add_limit_flags(*command, *options);
  add_slurm_flags(*command, options->slurm);
  add_energy_flags(*command, options->energy);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
