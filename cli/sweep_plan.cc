#include "cli/sweep_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/threads.h"
#include "bench/sweep_quality.h"
#include "kvquant/error.h"
#include "model/calibration_source.h"

namespace kvquant::cli {
namespace {

// What "max" means: every prompt, length of generation and spec once more, as large as it gets.
void add_largest_batches(std::vector<SweepPoint>& points) {
  const size_t count = points.size();
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) {
    SweepPoint point = points[i];
    point.batch = 0;
    names.push_back(point_name(point));
    if (std::find(names.begin(), names.end() - 1, names.back()) == names.end() - 1) {
      points.push_back(std::move(point));
    }
  }
}

std::vector<SweepPoint> points_of(const SweepOptions& options) {
  const bool has_grid = !options.grid.empty(), has_configs = !options.configs.empty();
  check_arg(!(has_grid && has_configs), "--grid and --config exclude each other");
  check_arg(has_grid || has_configs || options.quick,
            "sweep needs --grid FILE, --config NAME or --quick");
  std::vector<SweepPoint> points;
  if (has_grid) {
    const std::string text = read_utf8(options.grid);
    points = parse_grid(text, options.grid);
    parse_quality(text, options.grid);  // mistakes there are refused now, too
  } else if (has_configs) {
    for (const auto& name : options.configs) {
      points.push_back(parse_point_name(name));
      check_spec_built(points.back().spec);
    }
  } else {
    points = quick_grid();
  }
  const bool is_max = std::any_of(points.begin(), points.end(),
                                  [](const SweepPoint& point) { return point.batch == 0; });
  check_arg(!is_max || !options.memory_budget.empty(),
            "the largest batch (\"max\") needs --memory-budget SIZE");
  // Named configurations are what they are; a grid gets its largest batches.
  if (!has_configs && !is_max && !options.memory_budget.empty()) add_largest_batches(points);
  return points;
}

Json calibration_of(const CommonOptions& common) {
  if (common.calibration.empty()) return nullptr;
  const Calibration calibration = load_calibration(common.calibration);
  return {{"path", common.calibration}, {"fingerprint", calibration_fingerprint(calibration.info)}};
}

Json configuration_of(const SweepOptions& options, const Json& model) {
  const CommonOptions& common = options.common;
  Json out = {{"model_fingerprint", model.at("fingerprint")},
              {"calibration", calibration_of(common)},
              {"threads", common.threads > 0 ? common.threads : num_available_cores()},
              {"device", common.device},
              {"precision", precision_of(common) == Precision::kBF16 ? "bf16" : "f32"},
              {"weights", common.weights},
              {"ubatch", common.ubatch},
              {"seed", common.seed}};
  out.update(limits_fields(limits_of(options)));
  return out;
}

std::string program_path() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

}  // namespace

SweepLimits limits_of(const SweepOptions& options) {
  SweepLimits limits = options.quick ? quick_limits() : SweepLimits{};
  RepetitionLimits& repetitions = limits.repetitions;
  repetitions.warmups = options.warmups.value_or(repetitions.warmups);
  repetitions.max_repetitions = options.max_repetitions.value_or(repetitions.max_repetitions);
  repetitions.target_error = options.target_error.value_or(repetitions.target_error);
  repetitions.max_seconds = options.max_seconds.value_or(repetitions.max_seconds);
  limits.min_repetitions = options.min_repetitions.value_or(
      std::min(limits.min_repetitions, repetitions.max_repetitions));
  check_arg(limits.min_repetitions <= repetitions.max_repetitions,
            fmt::format("--min-repetitions {} is more than --max-repetitions {}",
                        limits.min_repetitions, repetitions.max_repetitions));
  if (!options.memory_budget.empty()) limits.memory_budget = parse_bytes(options.memory_budget);
  return limits;
}

SweepPlan::SweepPlan(const SweepOptions& options) : options_(options) {
  const std::vector<SweepPoint> points = points_of(options);
  energy_options(options.energy);  // refused here rather than in every process
  const std::string path = find_model(options.common.model);
  const auto checkpoint = open_checkpoint(path);
  const ModelConfig& config = checkpoint->config();
  model_ = {{"name", config.name}, {"path", path}, {"fingerprint", checkpoint->fingerprint()}};
  configuration_ = configuration_of(options, model_);
  for (const SweepPoint& point : points) {
    const std::string name = point_name(point);
    check_spec_fits(point.spec, static_cast<int>(config.num_layers),
                    static_cast<int>(config.head_dim));
    if (std::find(specs_.begin(), specs_.end(), point.spec.text) == specs_.end()) {
      specs_.push_back(point.spec.text);
    }
    if (point.prompt + point.gen > config.max_context) {
      ++num_too_long_;
      continue;
    }
    Json of_item = configuration_;
    of_item["spec_resolved"] = resolved(with_windows(point.spec, CacheMode::kAsServed));
    items_.push_back({point, name, result_stem(name, of_item)});
  }
  check_arg(!items_.empty(), fmt::format("no configuration is left to measure: all are longer than "
                                         "the model's context of {} tokens",
                                         config.max_context));
  results_.emplace(options.output);  // last: what is refused leaves no folder behind
}

Json SweepPlan::document(const Item& item) const {
  Json document = make_document("sweep", model_, configuration_);
  document["results"].push_back(point_fields(item.point));
  return document;
}

std::vector<std::string> SweepPlan::command(const Item& item) const {
  std::vector<std::string> out = {program_path(), "sweep",    "--here",
                                  "--quiet",      "--config", item.name};
  add_settings(out);
  return out;
}

std::vector<std::string> SweepPlan::task_command() const {
  std::vector<std::string> out = {program_path(), "sweep", "--task"};
  add_settings(out);
  return out;
}

std::vector<std::string> SweepPlan::command(const std::string& name) const {
  std::vector<std::string> out = {program_path(), name, "--quiet"};
  add_engine(out);
  return out;
}

void SweepPlan::add_engine(std::vector<std::string>& out) const {
  const CommonOptions& common = options_.common;
  const auto add = [&](const char* flag, const auto& value) {
    out.insert(out.end(), {flag, fmt::format("{}", value)});
  };
  add("--model", model_.at("path").get<std::string>());
  add("--threads", configuration_.at("threads").get<int>());
  add("--device", common.device);
  add("--precision", common.precision);
  add("--weights", common.weights);
  add("--ubatch", common.ubatch);
  add("--seed", common.seed);
}

void SweepPlan::add_settings(std::vector<std::string>& out) const {
  const CommonOptions& common = options_.common;
  const SweepLimits limits = limits_of(options_);
  const auto add = [&](const char* flag, const auto& value) {
    out.insert(out.end(), {flag, fmt::format("{}", value)});
  };
  add("--output_path", options_.output);
  add_engine(out);
  if (!common.calibration.empty()) add("--calib", common.calibration);
  add("--warmup", limits.repetitions.warmups);
  add("--min-repetitions", limits.min_repetitions);
  add("--max-repetitions", limits.repetitions.max_repetitions);
  add("--target-error", limits.repetitions.target_error);
  add("--max-seconds", limits.repetitions.max_seconds);
  if (limits.memory_budget > 0) add("--memory-budget", limits.memory_budget);
  const EnergyFlags& energy = options_.energy;
  add("--region", energy.region);
  add("--powercap", energy.sources.powercap);
  add("--nvml", energy.sources.nvml);
  if (energy.assume_power_watts) add("--assume-power", *energy.assume_power_watts);
  if (energy.carbon_kg_per_kwh) add("--carbon-intensity", *energy.carbon_kg_per_kwh);
}

}  // namespace kvquant::cli
