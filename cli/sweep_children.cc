#include "cli/sweep_children.h"

#include <fmt/format.h>

#include <csignal>
#include <fstream>
#include <new>

#include "base/check.h"
#include "base/timer.h"
#include "cli/child_process.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

// Processes that the system has killed for lack of memory since it started; -1: not known.
int64_t num_oom_kills() {
  std::ifstream file("/proc/vmstat");
  std::string name;
  int64_t value = 0;
  while (file >> name >> value) {
    if (name == "oom_kill") return value;
  }
  return -1;
}

// This process goes first when memory runs out: not the sweep, nor what else the machine does.
void prefer_to_be_killed() { std::ofstream("/proc/self/oom_score_adj") << "1000" << std::flush; }

// What it said, without the name of the program that this one's messages begin with, too.
std::string message_of(const ChildOutcome& outcome) {
  const std::string name = "kvquant: ";
  const bool has_name = outcome.message.rfind(name, 0) == 0;
  return outcome.message.substr(has_name ? name.size() : 0);
}

std::string ending_of(const ChildOutcome& outcome) {
  std::string text = outcome.signal != 0
                         ? fmt::format("killed by signal {}", outcome.signal)
                         : fmt::format("ended with exit code {}", outcome.exit_code);
  if (!outcome.message.empty()) text += ": " + message_of(outcome);
  return text;
}

std::string figures_of(const Json& result) {
  if (result.at("status") != "ok") {
    return result.at("status").get<std::string>() + ": " + result.at("reason").get<std::string>();
  }
  std::string text =
      fmt::format("prefill {:.1f} tokens/s", result.at("prefill_tokens_per_s").get<double>());
  if (result.contains("decode_tokens_per_s")) {
    text += fmt::format(", decode {:.1f}", result.at("decode_tokens_per_s").get<double>());
  }
  if (result.contains("is_largest_batch")) {
    text += fmt::format(", batch {}", result.at("batch").get<int64_t>());
  }
  return text + ", cache " + format_bytes(result.at("cache_bytes").get<int64_t>());
}

// Runs one item and puts what came of it into the folder; returns its result.
Json run_item(const SweepPlan& plan, const SweepPlan::Item& item) {
  const int64_t kills = num_oom_kills();
  const ChildOutcome outcome = run_child(plan.command(item), ChildStderr::kKept);
  if (was_interrupted() || outcome.exit_code == kInterrupted || outcome.signal == SIGINT) {
    throw Interrupted{};
  }
  if (outcome.exit_code == kDone && outcome.signal == 0 &&
      plan.results().state(item.stem) == ResultState::kFinished) {
    return plan.results().read(item.stem).at("results")[0];
  }
  if (outcome.exit_code == kResources) throw OutOfMemory(item.name + ": " + message_of(outcome));
  Json document = plan.document(item);
  Json& result = document["results"][0];
  if (outcome.signal == SIGKILL && kills >= 0 && num_oom_kills() > kills) {
    result.update(out_of_memory_fields("killed by the system, which had no more memory"));
    plan.results().add(item.stem, document);
  } else {
    result.update({{"status", "failed"}, {"reason", ending_of(outcome)}});
    plan.results().add_failure(item.stem, document);
  }
  return result;
}

void count(const Json& result, SweepCounts& counts) {
  const Json& status = result.at("status");
  ++(status == "ok"              ? counts.measured
     : status == "out_of_memory" ? counts.out_of_memory
                                 : counts.failed);
}

}  // namespace

SweepCounts run_children(const SweepPlan& plan, bool quiet) {
  SweepCounts counts;
  std::vector<const SweepPlan::Item*> left;
  for (const auto& item : plan.items()) {
    if (plan.results().state(item.stem) == ResultState::kMissing) left.push_back(&item);
  }
  counts.skipped = static_cast<int64_t>(plan.items().size() - left.size());
  if (counts.skipped > 0 && !quiet) {
    fmt::print(stderr, "sweep: {} of {} configurations have results and are skipped\n",
               counts.skipped, plan.items().size());
  }
  if (!plan.is_task()) plan.results().write_index();
  const Timer timer;
  for (size_t i = 0; i < left.size(); ++i) {
    if (was_interrupted()) throw Interrupted{};
    const Json result = run_item(plan, *left[i]);
    count(result, counts);
    if (!plan.is_task()) plan.results().write_index();
    if (quiet) continue;
    const double done = static_cast<double>(i + 1), total = static_cast<double>(left.size());
    const double minutes = timer.seconds() / done * (total - done) / 60;
    fmt::print(stderr, "sweep: {} of {}, {}: {}{}\n", i + 1, left.size(), left[i]->name,
               figures_of(result),
               i + 1 < left.size() ? fmt::format(" (about {:.0f} min left)", minutes) : "");
  }
  return counts;
}

void run_here(const SweepPlan& plan, const SweepOptions& options) {
  check_arg(plan.items().size() == 1, "--here needs one configuration that fits the model");
  const SweepPlan::Item& item = plan.items()[0];
  if (plan.results().state(item.stem) == ResultState::kFinished) return;
  prefer_to_be_killed();
  Json document = plan.document(item);
  Json& result = document["results"][0];
  try {
    Model model = load_model(options.common, RunsOn::kCpuOrGpu);
    EnergyOptions energy = energy_options(options.energy);
    energy.sources.gpu_id = -1;  // not counted, see below
    EnergyMeter meter(energy);
    ModelBenchOptions bench;
    bench.ubatch = options.common.ubatch;
    bench.seed = options.common.seed;
    // Of GPUs it isn't counted: a figure of the rest of the machine alone would mislead.
    bench.energy = model.is_on_device() ? nullptr : &meter;
    document["model"] = model_info(model);
    document["config"]["carbon_kg_per_kwh"] = energy.carbon_kg_per_kwh;
    result.update(run_point(model, item.point, limits_of(options), bench,
                            progress_on_stderr(options.common, item.name)));
  } catch (const OutOfMemory& error) {  // of a model on a GPU
    result.update(out_of_memory_fields(error.what()));
  } catch (const std::bad_alloc&) {  // of the model
    result.update(out_of_memory_fields("the system gave no more memory"));
  }
  plan.results().add(item.stem, document);
}

}  // namespace kvquant::cli
