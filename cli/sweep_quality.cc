#include "cli/sweep_quality.h"

#include <fmt/format.h>

#include <csignal>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "bench/sweep_quality.h"
#include "cli/child_process.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;
using Command = std::vector<std::string>;

struct Calibrated {
  std::string name, file;  // no file: not calibrated
};

// Builds the steps of one grid.
class Steps {
 public:
  Steps(const SweepPlan& plan, const SweepQuality& quality) : plan_(plan), quality_(quality) {
    for (const char* key :
         {"model_fingerprint", "calibration", "device", "precision", "weights", "ubatch", "seed"}) {
      engine_[key] = plan.configuration().at(key);
    }
  }

  Calibrated add_calibration(const SweepCalibration& calibration) {
    const std::string file =
        path_in_calibrations(calibration.name, calibration.arguments) + ".safetensors";
    add("calibration, " + calibration.name, "", file,
        command("calibrate", calibration.arguments, {"--output", file}));
    return {calibration.name, file};
  }

  void add_perplexity(const Calibrated& calibrated) {
    Command arguments = text_arguments();
    if (quality_.windows > 0) arguments.push_back(fmt::format("--windows={}", quality_.windows));
    for (const std::string& spec : plan_.specs()) arguments.push_back("--kv=" + spec);
    add_measurement("perplexity", "quality", calibrated, arguments);
  }

  void add_sensitivity(const Calibrated& calibrated) {
    Command arguments = text_arguments();
    arguments.insert(arguments.end(), quality_.sensitivity.begin(), quality_.sensitivity.end());
    add_measurement("allocate", "sensitivity", calibrated, arguments);
    // Where it goes on when it was stopped.
    Command& whole = steps_.back().command;
    const std::string known = path_in_calibrations("sensitivity_" + calibrated.name, whole);
    whole.insert(whole.end(), {"--sensitivity", known + ".json"});
  }

  std::vector<QualityStep> take() { return std::move(steps_); }

 private:
  // "lloyd-1a2b3c4d": of all that decides the result.
  std::string stem(const std::string& name, const Command& arguments) const {
    Json all = engine_;
    all["arguments"] = arguments;
    return result_stem(name, all);
  }

  std::string path_in_calibrations(const std::string& name, const Command& arguments) const {
    return folder() + "/" + stem(name, arguments);
  }

  Command text_arguments() const {
    Command out;
    if (!quality_.file.empty()) out.push_back("--file=" + quality_.file);
    if (quality_.context > 0) out.push_back(fmt::format("--ctx={}", quality_.context));
    return out;
  }

  Command command(const std::string& name, const Command& arguments, const Command& more) const {
    Command out = plan_.command(name);
    out.insert(out.end(), arguments.begin(), arguments.end());
    out.insert(out.end(), more.begin(), more.end());
    return out;
  }

  void add_measurement(const std::string& name, const std::string& prefix,
                       const Calibrated& calibrated, const Command& arguments) {
    // The file's own name has the hash of its settings: where the folder lies doesn't count.
    Command hashed = arguments;
    hashed.push_back(fs::path(calibrated.file).filename().string());
    const std::string file =
        fmt::format("{}/{}.json", plan_.folder(), stem(prefix + "_" + calibrated.name, hashed));
    Command more = {"--json", file};
    if (!calibrated.file.empty()) more.insert(more.end(), {"--calib", calibrated.file});
    add(name + ", " + calibrated.name, calibrated.file, file, command(name, arguments, more));
  }

  void add(const std::string& name, const std::string& needs, const std::string& output,
           Command whole) {
    steps_.push_back({name, needs, output, std::move(whole), folder()});
  }

  std::string folder() const { return plan_.folder() + "/calibrations"; }

  const SweepPlan& plan_;
  const SweepQuality& quality_;
  Json engine_;
  std::vector<QualityStep> steps_;
};

// Empty: done. Else why not.
std::string run_step(const QualityStep& step, bool quiet) {
  if (!step.needs.empty() && !fs::exists(step.needs)) return step.needs + " is missing";
  const ChildOutcome outcome = run_child(step.command, ChildStderr::kKeptAlone);
  if (was_interrupted() || outcome.exit_code == kInterrupted || outcome.signal == SIGINT) {
    throw Interrupted{};
  }
  if (outcome.exit_code == kResources) throw OutOfMemory(step.name + ": " + outcome.message);
  if (outcome.signal != 0) return fmt::format("killed by signal {}", outcome.signal);
  if (outcome.exit_code != kDone || !fs::exists(step.output)) {
    return fmt::format("ended with exit code {}: {}", outcome.exit_code, outcome.message);
  }
  if (!quiet && !outcome.message.empty()) {  // a warning
    fmt::print(stderr, "sweep: {}: {}\n", step.name, outcome.message);
  }
  return "";
}

// What a finished step has written; null: a calibration.
Json result_of(const QualityStep& step) {
  if (!step.output.ends_with(".json")) return nullptr;
  const Json document = Json::parse(read_text(step.output), nullptr, false);
  const bool is_result = document.is_object() && document.value("schema", Json()) == kSweepSchema &&
                         document.value("results", Json()).is_array();
  if (!is_result) {
    throw FormatError(step.output + ": not a result of this schema: move it away to measure again");
  }
  return document;
}

std::string name_of(const Json& calibration) {
  if (!calibration.is_object() || !calibration.at("path").is_string()) return "-";
  return fs::path(calibration.at("path").get<std::string>()).stem().string();
}

}  // namespace

std::vector<QualityStep> quality_steps(const SweepOptions& options, const SweepPlan& plan) {
  if (options.grid.empty()) return {};
  const auto quality = parse_quality(read_utf8(options.grid), options.grid);
  if (!quality) return {};
  const std::string& own = options.common.calibration;
  check_arg(own.empty() || quality->calibrations.empty(),
            options.grid + ": its quality has calibrations of its own: without --calib");
  Steps maker(plan, *quality);
  std::vector<Calibrated> all;
  for (const auto& calibration : quality->calibrations) {
    all.push_back(maker.add_calibration(calibration));
  }
  if (all.empty())
    all.push_back({own.empty() ? "uncalibrated" : fs::path(own).stem().string(), own});
  for (const Calibrated& calibrated : all) maker.add_perplexity(calibrated);
  if (!quality->sensitivity.empty()) {
    for (const Calibrated& calibrated : all) maker.add_sensitivity(calibrated);
  }
  std::vector<QualityStep> steps = maker.take();
  for (const QualityStep& step : steps) {  // refused now, not after hours
    if (fs::exists(step.output)) result_of(step);
  }
  return steps;
}

int64_t run_quality(const std::vector<QualityStep>& steps, bool quiet) {
  int64_t num_failed = 0;
  for (const QualityStep& step : steps) {
    if (fs::exists(step.output)) continue;
    if (was_interrupted()) throw Interrupted{};
    fs::create_directories(step.folder);
    if (!quiet) fmt::print(stderr, "sweep: {} ...\n", step.name);
    const std::string failure = run_step(step, quiet);
    if (failure.empty()) continue;
    fmt::print(stderr, "sweep: {} failed: {}\n", step.name, failure);
    ++num_failed;
  }
  return num_failed;
}

std::string quality_table(const std::vector<QualityStep>& steps) {
  std::vector<std::vector<std::string>> rows = {
      {"cache", "calibration", "true bits", "perplexity", "KL mean", "top-1"}};
  for (const QualityStep& step : steps) {
    if (!fs::exists(step.output)) continue;
    const Json document = result_of(step);
    if (document.is_null() || document.at("command") != "perplexity") continue;
    for (const Json& r : document.at("results")) {
      const bool is_exact = r.at("kl_mean") == 0;  // the same with every calibration
      if (is_exact && rows.size() > 1 && rows[1][0] == r.at("spec")) continue;
      rows.push_back({r.at("spec").get<std::string>(),
                      name_of(document.at("config").at("calibration")),
                      fmt::format("{:.2f}", r.at("true_bits").get<double>()),
                      fmt::format("{:.4f}", r.at("perplexity").get<double>()),
                      fmt::format("{:.5f}", r.at("kl_mean").get<double>()),
                      fmt::format("{:.2f}%", 100 * r.at("top1_agreement").get<double>())});
    }
  }
  return rows.size() > 1 ? format_table(rows, TableStyle::kMarkdown) : "";
}

}  // namespace kvquant::cli
