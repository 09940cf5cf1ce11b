#include "cli/policy.h"

#include <fmt/format.h>

#include "base/check.h"
#include "model/policy.h"

namespace kvquant::cli {
namespace {

constexpr const char* kAuto = "auto";

std::string listed_names() {
  std::string out;
  for (const KVPolicyName name : policy_names()) out += to_string(name) + ", ";
  return out + kAuto;
}

}  // namespace

void add_policy_flags(CLI::App& command, PolicyOptions& options) {
  command.add_option("--policy", options.policy,
                     fmt::format("how hard to compress, instead of --kv: {} (the least compressed "
                                 "one that fits into --memory)",
                                 listed_names()));
  command.add_option("--memory", options.memory,
                     "with --policy auto: for weights and caches, e.g. 8GiB");
  command.add_option("--ppl-budget", options.ppl_budget,
                     "with --policy auto: no policy that may raise perplexity by more than this "
                     "share, e.g. 0.03 (default: any)");
}

void check_policy(const PolicyOptions& options, const CommonOptions& common) {
  const bool is_auto = options.policy == kAuto;
  check_arg(is_auto || (options.memory.empty() && !options.ppl_budget),
            "--memory and --ppl-budget need --policy auto");
  if (options.policy.empty()) return;
  check_arg(common.device == "cpu",
            "--device " + common.device + ": --policy is for the CPU: give a spec with --kv");
  check_arg(common.kv.empty() && common.key_codec.empty() && common.value_codec.empty(),
            "--policy says what is stored: it excludes --kv, -ctk and -ctv");
  if (!is_auto) {
    try {
      parse_policy_name(options.policy);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(error.what()) + ", " + kAuto);
    }
    return;
  }
  check_arg(!options.memory.empty(), "--policy auto needs --memory, e.g. --memory 8GiB");
  parse_bytes(options.memory);
  check_arg(!options.ppl_budget || *options.ppl_budget >= 0,
            fmt::format("--ppl-budget is {:g}, not a share of at least 0",
                        options.ppl_budget.value_or(0)));
}

void apply_policy(const PolicyOptions& options, const CommonOptions& common, Model& model,
                  const PolicyLoad& load, std::vector<CacheSpec>& specs) {
  if (options.policy.empty()) return;
  const PolicyModel sizes = policy_model(model);
  const int64_t context = load.context > 0 ? load.context : sizes.max_context;
  std::string name = options.policy;
  std::string fit;
  if (name == kAuto) {
    const int64_t memory = parse_bytes(options.memory);
    const PolicyForecasts forecasts(sizes);
    const KVPolicyName chosen =
        forecasts.choose(memory, load.batch, context, options.ppl_budget.value_or(kNoPplBudget));
    name = to_string(chosen);
    fit = fmt::format("; weights and {} x {} tokens take {} of {}", load.batch, context,
                      format_bytes(forecasts.policy_bytes(chosen, load.batch, context)),
                      format_bytes(memory));
  }
  const CompressorConfig config =
      build_compressor_config_for_policy(sizes, model.config().name, name);
  specs = {parse_spec(config.spec)};
  if (common.quiet) return;
  fmt::print(stderr,
             "kvquant: policy {}: {} (perplexity within +{:g}% where it was measured{}){}\n", name,
             config.spec, 100 * config.ppl_budget,
             model.calibration() == nullptr ? ", with --calib" : "", fit);
}

}  // namespace kvquant::cli
