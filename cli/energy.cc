// kvquant energy: what counters of energy the machine has, what a command takes, what that is in
// CO2 and money.
#include <fmt/format.h>

#include <memory>

#include "base/check.h"
#include "base/file.h"
#include "bench/codecarbon.h"
#include "bench/energy_profiler.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/energy_flags.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  EnergyFlags energy;
  std::vector<std::string> command;
  double idle_s = 0;
  int64_t tokens = 0;
  std::optional<double> tokens_per_day, joules_per_token;
  double price = 0;
  std::string csv;
  bool regions = false;
};

void check_options(const Options& options) {
  check_arg(options.csv.empty() || !options.command.empty(),
            "--csv needs a command to measure: kvquant energy --csv FILE -- COMMAND");
  check_arg(options.tokens == 0 || !options.command.empty(),
            "--tokens needs a command to measure: kvquant energy --tokens N -- COMMAND");
  check_arg(!options.tokens_per_day || options.joules_per_token || options.tokens > 0,
            "--tokens-per-day needs --joules-per-token, or --tokens and a command");
  check_arg(!(options.joules_per_token && options.tokens > 0),
            "--joules-per-token and --tokens exclude each other: one says what the other measures");
}

void tell_counters(const EnergyMeter& meter) {
  for (const auto& name : meter.counter_names()) fmt::print("counter: {}\n", name);
  for (const auto& why : meter.missing()) fmt::print("no counter: {}\n", why);
  if (meter.counter_names().empty()) {
    fmt::print("energy: not measured ({})\n", fmt::join(meter.missing(), "; "));
  }
}

std::string carbon_source(const EnergyFlags& energy) {
  if (energy.carbon_kg_per_kwh) return "--carbon-intensity";
  return std::string(carbon_region(energy.region).source);
}

void print_regions() {
  std::vector<std::vector<std::string>> rows = {{"region", "kg/kWh", "year", "source"}};
  for (const CarbonRegion& region : carbon_regions()) {
    rows.push_back({std::string(region.name), fmt::format("{:.3f}", region.kg_per_kwh),
                    std::to_string(region.year), std::string(region.source)});
  }
  fmt::print("{}", format_table(rows, TableStyle::kMarkdown));
}

Json config_of(const Options& options, const EnergyMeter& meter) {
  return {{"command", options.command},
          {"carbon_kg_per_kwh", meter.options().carbon_kg_per_kwh},
          {"carbon_source", carbon_source(options.energy)},
          {"region", options.energy.region},
          {"counters", meter.counter_names()},
          {"missing_counters", meter.missing()}};
}

Json scenario_fields(const Options& options, double joules_per_token, const EnergyMeter& meter) {
  const EnergyScenario year = energy_scenario(
      *options.tokens_per_day, joules_per_token,
      {.carbon_kg_per_kwh = meter.options().carbon_kg_per_kwh, .price_per_kwh = options.price});
  return {{"tokens_per_day", *options.tokens_per_day},
          {"joules_per_token", joules_per_token},
          {"kwh_per_year", year.kwh_per_year},
          {"carbon_kg_per_year", year.carbon_kg_per_year},
          {"cost_per_year", year.cost_per_year}};
}

std::string describe_scenario(const Json& s, const std::string& label) {
  return fmt::format(
      "{:g} tokens a day at {:.4g} J/token{}: {:.4g} kWh, {:.4g} kg CO2, {:.2f} a year",
      s.at("tokens_per_day").get<double>(), s.at("joules_per_token").get<double>(), label,
      s.at("kwh_per_year").get<double>(), s.at("carbon_kg_per_year").get<double>(),
      s.at("cost_per_year").get<double>());
}

// The figures of a command go to stderr, whose stdout is the command's own.
int measure(const Options& options, EnergyMonitor& monitor, Json& result) {
  monitor.start();
  const ChildOutcome outcome = run_child(options.command, ChildStderr::kShared);
  const EnergyReading reading = monitor.stop();
  result.update(energy_fields(reading));
  result["exit_code"] = outcome.exit_code;
  result["signal"] = outcome.signal;
  std::string text = fmt::format("energy: {} in {:.3f} s", describe(reading), reading.duration_s);
  if (reading.idle_joules) text += fmt::format(", idle would take {:.4g} J", *reading.idle_joules);
  if (reading.carbon_kg) text += fmt::format(", {:.3g} kg CO2", *reading.carbon_kg);
  fmt::print(stderr, "{}\n", text);
  if (options.tokens > 0 && reading.energy_joules) {
    const double per_token = *reading.energy_joules / static_cast<double>(options.tokens);
    const std::string label = reading.kind == EnergyKind::kAssumed ? " (power assumed)" : "";
    result["joules_per_token"] = per_token;
    fmt::print(stderr, "energy: {:.4g} J/token{}\n", per_token, label);
    if (options.tokens_per_day) {
      result["scenario"] = scenario_fields(options, per_token, monitor.meter());
      fmt::print(stderr, "energy: {}\n", describe_scenario(result["scenario"], label));
    }
  }
  if (!options.csv.empty()) {
    append_codecarbon(options.csv, reading,
                      {.timestamp = utc_timestamp(),
                       .country_iso_code = std::string(carbon_region(options.energy.region).iso3)});
  }
  return outcome.signal != 0 ? 128 + outcome.signal : outcome.exit_code;
}

int run(const Options& options) {
  check_options(options);
  if (options.regions) {
    print_regions();
    return kDone;
  }
  if (!options.csv.empty()) check_writable(options.csv);
  EnergyMonitor monitor(energy_options(options.energy));
  EnergyMeter& meter = monitor.meter();
  Json document = make_document("energy", nullptr, config_of(options, meter));
  Json result = Json::object();
  const bool prints = !json_on_stdout(options.common) && options.command.empty();
  if (prints) tell_counters(meter);
  if (options.idle_s > 0) {
    const auto watts = meter.measure_idle(options.idle_s);
    result["idle_watts"] = watts ? Json(*watts) : Json(nullptr);
    if (watts && prints) fmt::print("idle: {:.4g} W over {:g} s\n", *watts, options.idle_s);
  }
  int exit_code = kDone;
  if (!options.command.empty()) {
    exit_code = measure(options, monitor, result);
  } else if (options.tokens_per_day) {
    result["scenario"] = scenario_fields(options, *options.joules_per_token, meter);
    if (prints) fmt::print("{}\n", describe_scenario(result["scenario"], ""));
  }
  document["results"].push_back(result);
  write_json(options.common, document);
  return exit_code;
}

constexpr const char* kFooter =
    "Counters are of the whole machine: RAPL of processors and their memory (often readable by\n"
    "root alone), NVML of one NVIDIA GPU. Without one nothing is made up: energy is 'not "
    "measured'\nand why. Figures of a command go to stderr; its exit code is passed on.";

}  // namespace

void add_energy(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("energy", "energy, CO2 and cost of a command; counters");
  command->footer(kFooter);
  command->add_option("COMMAND", options->command, "what to measure, after --");
  command->add_option("--gpu", options->energy.sources.gpu_id, "the GPU that is counted; -1: none")
      ->check(CLI::Range(-1, 1023))
      ->capture_default_str();
  add_energy_flags(*command, options->energy);
  command
      ->add_option("--idle", options->idle_s, "first measure the idle machine for so many seconds")
      ->check(amount());
  command->add_option("--tokens", options->tokens, "tokens that the command processes")
      ->check(at_least(1));
  command
      ->add_option("--tokens-per-day", options->tokens_per_day,
                   "say what so many cost in a year of 365 days")
      ->check(amount());
  command
      ->add_option("--joules-per-token", options->joules_per_token,
                   "energy of a token, measured before")
      ->check(amount());
  command->add_option("--price", options->price, "of a kWh, in any currency")->check(amount());
  command->add_option("--csv", options->csv, "append a row as CodeCarbon writes it to this file");
  command->add_flag("--regions", options->regions,
                    "say how much CO2 a kWh is in the regions there are, by which source");
  add_common_flags(*command, options->common, 0);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
