// kvquant bench harness: what sweep's measuring costs what it measures.
#include "cli/bench_harness.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>

#include "base/check.h"
#include "base/file.h"
#include "bench/harness_timing.h"
#include "cli/child_process.h"
#include "cli/common.h"
#include "cli/sweep_plan.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  SweepOptions sweep;  // of its processes
  SweepPoint point = {.prompt = 512, .batch = 1, .gen = 32, .spec = {}};
  std::string spec = "fp16";
  int repetitions = 5, rounds = 20;
};

// In the system's folder for temporary files; gone at the end.
class TemporaryFolder {
 public:
  TemporaryFolder()
      : path_(fs::temp_directory_path() / fmt::format("kvquant-harness-{}", getpid())) {
    fs::create_directories(path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string path(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

// Where the machine has no counters: files like RAPL's, which stand still. Returns the folder.
std::string stand_in_counters(const TemporaryFolder& folder) {
  const std::string zone = folder.path("powercap/intel-rapl:0");
  fs::create_directories(zone);
  write_file_atomic(zone + "/name", std::string_view("stand-in\n"));
  write_file_atomic(zone + "/max_energy_range_uj", std::string_view("1000000\n"));
  write_file_atomic(zone + "/energy_uj", std::string_view("1\n"));
  return folder.path("powercap");
}

double median_of(const Json& result, const char* phase) {
  return result.at(std::string(phase) + "_latency_s_median").get<double>();
}

// A configuration of a sweep, in a process of its own as there.
PhaseTimes run_in_process(SweepOptions options, const std::string& folder) {
  options.output = folder;
  const SweepPlan plan(options);
  check_arg(!plan.items().empty(), "harness: the configuration is longer than the model's context");
  const SweepPlan::Item& item = plan.items()[0];
  const ChildOutcome outcome = run_child(plan.command(item), ChildStderr::kKept);
  if (was_interrupted()) throw Interrupted{};
  if (outcome.exit_code != kDone || outcome.signal != 0) {
    throw std::runtime_error("harness: its process ended: " + outcome.message);
  }
  const Json result = plan.results().read(item.stem).at("results")[0];
  if (result.at("status") != "ok") throw OutOfMemory(result.at("reason").get<std::string>());
  return {median_of(result, "prefill"), median_of(result, "decode")};
}

struct Variant {
  const char* name;
  std::function<PhaseTimes(int round)> run;
  std::vector<double> prefill_s = {}, decode_s = {};  // a median per round
};

// The order goes round, so that a drifting machine touches all alike.
void take_turns(std::vector<Variant>& variants, int rounds, const Progress& progress) {
  for (int round = 0; round < rounds; ++round) {
    report(progress, round, rounds);
    for (size_t i = 0; i < variants.size(); ++i) {
      Variant& variant = variants[(i + static_cast<size_t>(round)) % variants.size()];
      const PhaseTimes times = variant.run(round);
      variant.prefill_s.push_back(times.prefill_s);
      variant.decode_s.push_back(times.decode_s);
    }
  }
  report(progress, rounds, rounds);
}

using Rows = std::vector<std::vector<std::string>>;

void add_phase(const char* phase, const std::vector<Variant>& variants,
               std::vector<double> Variant::*times, Rows& rows, Json& document) {
  for (const Variant& variant : variants) {
    std::vector<double> sorted = variant.*times;
    std::sort(sorted.begin(), sorted.end());
    const double median_s = sorted[sorted.size() / 2];
    const RatioEstimate ratio = estimate_ratio(variant.*times, variants[0].*times);
    const bool is_first = &variant == variants.data();
    rows.push_back({phase, variant.name, fmt::format("{:.3f}", median_s * 1e3),
                    is_first ? "-" : fmt::format("{:+.2f}%", (ratio.median - 1) * 100),
                    is_first ? "-"
                             : fmt::format("{:+.2f}% to {:+.2f}%", (ratio.low - 1) * 100,
                                           (ratio.high - 1) * 100)});
    document["results"].push_back({{"phase", phase},
                                   {"variant", variant.name},
                                   {"round_medians_s", variant.*times},
                                   {"ratio", ratio.median},
                                   {"ratio_low", ratio.low},
                                   {"ratio_high", ratio.high}});
  }
}

SweepOptions child_options(const Options& options, const EnergyOptions& energy) {
  SweepOptions out = options.sweep;
  out.configs = {point_name(options.point)};
  out.energy.sources = energy.sources;
  out.warmups = 1;
  out.min_repetitions = out.max_repetitions = options.repetitions;
  out.max_seconds = 0;
  return out;
}

int run(Options& options) {
  options.point.spec = parse_spec(options.spec);
  check_spec_built(options.point.spec);
  const CommonOptions& common = options.sweep.common;
  const TemporaryFolder folder;
  EnergyOptions energy = energy_options(options.sweep.energy);
  energy.sources.gpu_id = -1;  // as in a sweep
  const bool has_counters = !find_energy_counters(energy.sources).counters.empty();
  if (!has_counters) energy.sources.powercap = stand_in_counters(folder);
  const SweepOptions child = child_options(options, energy);
  Model model = load_model(common);
  ModelBenchOptions bench{.repetitions = options.repetitions, .ubatch = common.ubatch};
  bench.seed = common.seed;
  const auto time = [&](EnergyMeter* meter) {
    ModelBenchOptions with_meter = bench;
    with_meter.energy = meter;
    return time_phases(model, options.point, with_meter);
  };
  std::vector<Variant> variants = {{"a timer alone", [&](int) { return time(nullptr); }},
                                   {"beside the sampling thread",
                                    [&](int) {
                                      const EnergyMeter meter(energy);
                                      return time(nullptr);
                                    }},
                                   {"energy read around it",
                                    [&](int) {
                                      EnergyMeter meter(energy);
                                      return time(&meter);
                                    }},
                                   {"in a process of a sweep", [&](int round) {
                                      return run_in_process(
                                          child, folder.path(fmt::format("round{}", round)));
                                    }}};
  take_turns(variants, options.rounds, progress_on_stderr(common, "harness"));
  Json document =
      make_document("bench harness", model_info(model),
                    {{"configuration", point_name(options.point)},
                     {"repetitions", options.repetitions},
                     {"rounds", options.rounds},
                     {"counters", has_counters ? EnergyMeter(energy).counter_names()
                                               : std::vector<std::string>{"stand-in files"}}});
  Rows rows = {{"phase", "measured", "median ms", "more time", "19 in 20"}};
  add_phase("prefill", variants, &Variant::prefill_s, rows, document);
  add_phase("decode", variants, &Variant::decode_s, rows, document);
  write_json(common, document);
  if (json_on_stdout(common)) return kDone;
  fmt::print("{}", format_table(rows, TableStyle::kMarkdown));
  fmt::print("counters: {}\n", fmt::join(document["config"]["counters"], ", "));
  return kDone;
}

constexpr const char* kFooter =
    "The same work timed with less or more around it, in turns. more time: than with a timer "
    "alone,\nmedian over the rounds, and where that is in 19 of 20 cases. Counters are read "
    "through "
    "files that\nstand in for RAPL's where the machine has none.";

}  // namespace

void add_bench_harness(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = bench.add_subcommand("harness", "what sweep's measuring costs what it measures");
  command->footer(kFooter);
  add_common_flags(*command, options->sweep.common, kModelFlags | kRunFlags);
  const auto number = [&](const char* flag, auto& value, int64_t least, const char* help) {
    return command->add_option(flag, value, help)->check(at_least(least))->capture_default_str();
  };
  command->add_option("--kv", options->spec, "cache spec")->capture_default_str();
  number("-p,--n-prompt", options->point.prompt, 1, "tokens of the prompt");
  number("-n,--n-gen", options->point.gen, 1, "tokens decoded behind it");
  number("-b,--batch", options->point.batch, 1, "sequences side by side");
  number("-r,--repetitions", options->repetitions, 1, "of a round, after one more");
  command->add_option("--rounds", options->rounds, "rounds")
      ->check(CLI::Range(kMinRounds, kMaxRounds))
      ->capture_default_str();
  add_energy_flags(*command, options->sweep.energy);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
