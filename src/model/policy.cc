#include "model/policy.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "base/quote.h"
#include "base/threads.h"
#include "cache/forecast.h"
#include "kvquant/spec.h"

namespace kvquant {
namespace {

struct PolicyRow {
  KVPolicyName name;
  const char* text;
  double ppl_budget;
  const char* spec;
  const char* spec_without_rotation;  // where head_dim is no power of two
};

// All there is to a policy. Measured in docs/policies.md, as served with a calibration.
constexpr std::array<PolicyRow, 3> kPolicies = {{
    {KVPolicyName::kDefault, "default", 0.01, "k=nuq4-1%,v=had+nuq4,sink=4,recent=64",
     "nuq4-1%,sink=4,recent=64"},
    {KVPolicyName::kHighCompression, "high_compression", 0.03,
     "k=nuq3-1%,v=had+nuq3,sink=4,recent=64", "nuq3-1%,sink=4,recent=64"},
    {KVPolicyName::kMemoryEmergency, "memory_emergency", 0.2,
     "k=nuq2-1%,v=lnns+nuq3,sink=4,recent=16", "k=nuq2-1%,v=lnns+nuq3,sink=4,recent=16"},
}};

const PolicyRow& row_of(KVPolicyName name) { return kPolicies[static_cast<size_t>(name)]; }

std::string known_names() {
  std::string out;
  for (const PolicyRow& row : kPolicies) out += (out.empty() ? "" : ", ") + std::string(row.text);
  return out;
}

void check_model(const PolicyModel& config) {
  check_arg(
      config.num_layers > 0 && config.num_kv_heads > 0 && config.head_dim > 0 &&
          config.weight_bytes >= 0,
      fmt::format("policy: a model of {} layers, {} KV heads of {}, {} bytes of weights",
                  config.num_layers, config.num_kv_heads, config.head_dim, config.weight_bytes));
}

CacheSpec spec_of(const PolicyModel& config, KVPolicyName name) {
  const bool rotates = std::has_single_bit(static_cast<uint64_t>(config.head_dim));
  return parse_spec(rotates ? row_of(name).spec : row_of(name).spec_without_rotation);
}

bool has(const Codec& codec, Transform transform) {
  for (const TransformStep& step : codec.transforms) {
    if (step.kind == transform) return true;
  }
  return false;
}

std::string mebibytes(double bytes) { return fmt::format("{:.1f} MiB", bytes / 0x1p20); }

}  // namespace

std::string to_string(KVPolicyName name) { return row_of(name).text; }

std::vector<KVPolicyName> policy_names() {
  std::vector<KVPolicyName> out;
  for (const PolicyRow& row : kPolicies) out.push_back(row.name);
  return out;
}

KVPolicyName parse_policy_name(std::string_view name) {
  for (const PolicyRow& row : kPolicies) {
    if (row.text == name) return row.name;
  }
  throw std::invalid_argument(fmt::format("there is no policy {}: {}", quote(name), known_names()));
}

CompressorConfig build_compressor_config_for_policy(const PolicyModel& config,
                                                    const std::string& model_id,
                                                    std::string_view policy_name) {
  check_model(config);
  const KVPolicyName name = parse_policy_name(policy_name);
  const CacheSpec spec = spec_of(config, name);
  return {.policy = name,
          .model_id = model_id,
          .spec = spec.text,
          .ppl_budget = row_of(name).ppl_budget,
          .key_codec = to_string(spec.key),
          .value_codec = to_string(spec.value),
          .sink_tokens = spec.sink.value_or(0),
          .recent_tokens = spec.recent.value_or(0),
          .use_hadamard_v = has(spec.value, Transform::kHadamard),
          .use_ln_nullspace_v = has(spec.value, Transform::kLnNullspace)};
}

PolicyForecasts::PolicyForecasts(const PolicyModel& config) : config_(config) {
  check_model(config);
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const KvShape shape{config.num_layers, config.num_kv_heads, config.head_dim,
                      config.sliding_window};
  for (const PolicyRow& row : kPolicies) {
    caches_.push_back(forecast_cache(shape, spec_of(config, row.name), pool));
  }
}

void PolicyForecasts::check_run(int64_t batch, int64_t max_context) const {
  check_arg(batch >= 1, fmt::format("policy: a batch of {} sequences", batch));
  check_arg(max_context >= 1, fmt::format("policy: a context of {} tokens", max_context));
  check_arg(config_.max_context == 0 || max_context <= config_.max_context,
            fmt::format("policy: a context of {} tokens, the model's is {}", max_context,
                        config_.max_context));
}

int64_t PolicyForecasts::policy_bytes(KVPolicyName name, int64_t batch, int64_t max_context) const {
  check_run(batch, max_context);
  return config_.weight_bytes + static_cast<int64_t>(std::ceil(of(name).bytes(max_context, batch)));
}

KVPolicyName PolicyForecasts::choose(int64_t memory_bytes, int64_t batch, int64_t max_context,
                                     double ppl_budget) const {
  check_run(batch, max_context);
  check_arg(ppl_budget >= 0, fmt::format("policy: a perplexity budget of {:g}", ppl_budget));
  check_arg(memory_bytes >= 1, fmt::format("policy: {} bytes of memory", memory_bytes));
  for (const PolicyRow& row : kPolicies) {
    if (row.ppl_budget > ppl_budget) break;
    if (policy_bytes(row.name, batch, max_context) <= memory_bytes) return row.name;
  }
  throw std::invalid_argument(nothing_fits(memory_bytes, batch, max_context, ppl_budget));
}

// What was asked for, what each policy needs, and what would fit.
std::string PolicyForecasts::nothing_fits(int64_t memory_bytes, int64_t batch, int64_t max_context,
                                          double ppl_budget) const {
  const std::string within =
      std::isfinite(ppl_budget)
          ? fmt::format(" within a rise of perplexity of {:g}%", 100 * ppl_budget)
          : "";
  std::string out =
      fmt::format("policy: none fits into {}{}: weights take {}, the cache of {} x {} tokens",
                  mebibytes(static_cast<double>(memory_bytes)), within,
                  mebibytes(static_cast<double>(config_.weight_bytes)), batch, max_context);
  std::string remedy;
  for (const PolicyRow& row : kPolicies) {
    const CacheForecast& forecast = of(row.name);
    const double cache = forecast.bytes(max_context, batch);
    const bool is_allowed = row.ppl_budget <= ppl_budget;
    out += fmt::format("{} {} as {} (up to +{:g}%)", row.name == KVPolicyName::kDefault ? "" : ",",
                       mebibytes(cache), row.text, 100 * row.ppl_budget);
    const int64_t left = memory_bytes - config_.weight_bytes;
    if (!is_allowed) {
      if (remedy.empty() && cache <= static_cast<double>(left)) {
        remedy = fmt::format("a budget of {:g}% would allow {}", 100 * row.ppl_budget, row.text);
      }
      continue;
    }
    const int64_t longest = left > 0 ? forecast.longest_context(left / batch) : 0;
    if (longest > 0) {
      remedy = fmt::format("{} tokens would fit as {}", std::min(longest, max_context), row.text);
    }
  }
  return out + (remedy.empty() ? ": give more memory" : ": " + remedy);
}

int64_t policy_bytes(const PolicyModel& config, KVPolicyName name, int64_t batch,
                     int64_t max_context) {
  return PolicyForecasts(config).policy_bytes(name, batch, max_context);
}

KVPolicyName choose_policy_for_run(const PolicyModel& config, int64_t memory_bytes, int64_t batch,
                                   int64_t max_context, double ppl_budget) {
  return PolicyForecasts(config).choose(memory_bytes, batch, max_context, ppl_budget);
}

PolicyModel policy_model(Model& model) {
  const ModelConfig& config = model.config();
  return {.num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .max_context = config.max_context,
          .sliding_window = config.sliding_window,
          .weight_bytes = model.transformer().weight_bytes()};
}

}  // namespace kvquant
