// kvquant info: what a model is, and what its cache costs in every format.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "cache/forecast.h"
#include "cli/commands.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string memory;
};

// Beside theta.
std::string rope_text(const RopeScaling& scaling) {
  std::string text;
  if (scaling.type != RopeScalingType::kNone) {
    text = fmt::format(" stretched {} times ({}", scaling.factor, rope_scaling_name(scaling.type));
    if (scaling.original_context > 0)
      text += fmt::format(" of {} tokens", scaling.original_context);
    if (scaling.attention_factor != 1) {
      text += fmt::format(", attention factor {:.4g}", scaling.attention_factor);
    }
    text += ")";
  }
  return scaling.divisors.empty() ? text : text + " with divisors of its own";
}

// What plain Llamas don't have.
std::string special_parts(const ModelConfig& config) {
  std::vector<std::string> parts;
  if (config.sliding_window > 0) {
    parts.push_back(fmt::format("sliding window of {} tokens", config.sliding_window));
  }
  if (config.qkv_bias) parts.emplace_back("biases of queries, keys and values");
  if (config.qk_norm) parts.emplace_back("norms of queries and keys");
  return fmt::format("{}", fmt::join(parts, ", "));
}

Json rope_fields(const RopeScaling& scaling) {
  return {{"type", rope_scaling_name(scaling.type)},
          {"factor", scaling.factor},
          {"original_context", scaling.original_context},
          {"attention_factor", scaling.attention_factor},
          {"has_divisors", !scaling.divisors.empty()}};
}

// A row of the table for a spec, and its object in the results.
struct Costs {
  int64_t context = 0;
  int64_t memory = 0;        // bytes for weights and caches; 0: not asked
  int64_t weight_bytes = 0;  // as packed
  double values_per_token = 0;

  void add(const CacheSpec& spec, const CacheForecast& forecast,
           std::vector<std::vector<std::string>>& rows, Json& results) const {
    const double per_token = forecast.bytes_per_token();
    const double bits = 8 * per_token / values_per_token;
    const auto cache_bytes = static_cast<int64_t>(std::llround(forecast.bytes(context)));
    Json result = spec_fields(spec, CacheMode::kAsServed);
    result.update({{"bytes_per_token", per_token},
                   {"bits_per_value", bits},
                   {"context", context},
                   {"cache_bytes", cache_bytes}});
    rows.push_back({spec.text, fmt::format("{:.0f}", per_token), fmt::format("{:.2f}", bits),
                    format_bytes(cache_bytes)});
    if (memory > 0) {
      const int64_t left = std::max<int64_t>(0, memory - weight_bytes);
      const int64_t longest = forecast.longest_context(left);
      const int64_t batch = forecast.largest_batch(left, context);
      result.update({{"longest_context", longest}, {"largest_batch", batch}});
      rows.back().push_back(std::to_string(longest));
      rows.back().push_back(std::to_string(batch));
    }
    results.push_back(result);
  }
};

void print_model(Model& model) {
  const ModelConfig& config = model.config();
  fmt::print("{}\n  {}\n", config.name, model.path());
  fmt::print("  {}, {:.1f} M parameters, file {}, packed weights {}\n", config.architecture,
             static_cast<double>(model.checkpoint().num_parameters()) / 1e6,
             format_bytes(model.checkpoint().file_bytes()),
             format_bytes(model.transformer().weight_bytes()));
  fmt::print("  {} layers, hidden {}, ffn {}, {} query and {} KV heads of {}\n", config.num_layers,
             config.hidden, config.ffn, config.num_q_heads, config.num_kv_heads, config.head_dim);
  fmt::print("  vocabulary {}, context {}, RoPE theta {}{}, {} embeddings\n", config.vocab_size,
             config.max_context, config.rope_theta, rope_text(config.rope_scaling),
             config.tied_embeddings ? "tied" : "untied");
  const std::string special = special_parts(config);
  fmt::print("{}\n", special.empty() ? "" : "  " + special + "\n");
}

int run(const Options& options) {
  const auto specs = specs_of(options.common, {"fp32", "fp16", "bf16", "int8", "int4", "nuq4",
                                               "nuq4-1%", "nuq3", "nuq3-1%", "nuq2", "nuq2-1%"});
  const int64_t memory = options.memory.empty() ? 0 : parse_bytes(options.memory);
  Model model = load_model(options.common);
  const ModelConfig& config = model.config();
  Costs costs;
  costs.context = options.common.context > 0 ? options.common.context : config.max_context;
  costs.memory = memory;
  costs.weight_bytes = model.transformer().weight_bytes();
  costs.values_per_token = 2.0 * static_cast<double>(config.num_layers * config.kv_dim());

  Json document = make_document("info", model_info(model), common_config(options.common, model));
  document["model"].update({{"file_bytes", model.checkpoint().file_bytes()},
                            {"weight_bytes", costs.weight_bytes},
                            {"ffn", config.ffn},
                            {"rope_theta", config.rope_theta},
                            {"rope_scaling", rope_fields(config.rope_scaling)},
                            {"sliding_window", config.sliding_window},
                            {"qkv_bias", config.qkv_bias},
                            {"qk_norm", config.qk_norm},
                            {"tied_embeddings", config.tied_embeddings}});
  if (memory > 0) document["config"]["memory_bytes"] = memory;
  std::vector<std::vector<std::string>> rows = {
      {"cache", "bytes/token", "bits/value", fmt::format("at {} tokens", costs.context)}};
  if (memory > 0) {
    rows[0].push_back("longest context");
    rows[0].push_back(fmt::format("batch at {}", costs.context));
  }
  for (const CacheSpec& spec : specs) {
    costs.add(spec, forecast_cache(model.transformer().kv_shape(), spec, model.pool()), rows,
              document["results"]);
  }
  write_json(options.common, document);
  if (json_on_stdout(options.common)) return kDone;

  print_model(model);
  if (memory > 0) {
    fmt::print("With {} for weights and caches:\n", format_bytes(memory));
    if (memory <= costs.weight_bytes) fmt::print("(the weights alone need more)\n");
  }
  fmt::print("{}", format_table(rows));
  if (memory > 0) fmt::print("The model itself reads up to {} tokens.\n", config.max_context);
  return kDone;
}

}  // namespace

void add_info(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("info", "architecture of a model and cost of its cache");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags);
  command
      ->add_option("--memory", options->memory,
                   "say what fits into this much memory, weights included, e.g. 8GiB")
      ->check([](const std::string& size) {  // an unset variable of a script, most likely
        return size.empty() ? "the size is empty: write for example 8GiB" : std::string();
      });
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
