// kvquant perplexity: quality of several cache specs on a text, in one pass.
#include "eval/perplexity.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>

#include "base/check.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/policy.h"
#include "model/calibration_source.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  PolicyOptions policy;
  std::string file;
  int64_t stride = 0;
  int64_t max_windows = 0;
  bool as_served = false;
  std::optional<double> max_ppl_delta;  // relative
};

Json to_json(const PerplexityResult& r, CacheMode mode) {
  Json out = spec_fields(r.spec, mode);
  out.update({{"perplexity", r.perplexity},
              {"ppl_stderr", r.ppl_stderr},
              {"ppl_delta", r.ppl_delta},
              {"ppl_delta_rel", r.ppl_delta_rel},
              {"kl_mean", r.kl_mean},
              {"kl_median", r.kl_median},
              {"kl_p99", r.kl_p99},
              {"kl_max", r.kl_max},
              {"top1_agreement", r.top1_agreement},
              {"true_bits", r.true_bits},
              {"cache_bytes", r.cache_bytes},
              {"tokens", r.tokens},
              {"compressed_tokens", r.compressed_tokens}});
  return out;
}

bool compresses(const CacheSpec& spec, int64_t num_layers) {
  for (int layer = 0; layer < num_layers; ++layer) {
    if (is_compressed(spec.key_of(layer)) || is_compressed(spec.value_of(layer))) return true;
  }
  return false;
}

void print_table(const std::vector<PerplexityResult>& results) {
  std::vector<std::vector<std::string>> rows = {
      {"spec", "true bits", "cache", "perplexity", "±", "Δ", "KL mean", "KL 99%", "top-1"}};
  for (const auto& r : results) {
    rows.push_back({r.spec.text, fmt::format("{:.2f}", r.true_bits), format_bytes(r.cache_bytes),
                    fmt::format("{:.4f}", r.perplexity), fmt::format("{:.4f}", r.ppl_stderr),
                    fmt::format("{:+.2f}%", 100 * r.ppl_delta_rel),
                    fmt::format("{:.5f}", r.kl_mean), fmt::format("{:.4f}", r.kl_p99),
                    fmt::format("{:.2f}%", 100 * r.top1_agreement)});
  }
  fmt::print("{}", format_table(rows));
}

int run(const Options& options) {
  const double limit = options.max_ppl_delta.value_or(0);
  check_arg(std::isfinite(limit) && limit >= 0,
            fmt::format("--max-ppl-delta is {}, not a number of at least 0", limit));
  check_policy(options.policy, options.common);
  auto specs = specs_of(options.common, {"fp16", "nuq4-1%", "nuq3-1%", "nuq2-1%"});
  const std::string text =
      read_utf8(options.file.empty() ? find_asset("sample.txt") : options.file);
  Model model = load_model(options.common, RunsOn::kCpuOrGpu);
  const auto tokens =
      model.tokenizer().encode(text, Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
  const int64_t window = options.common.context > 0
                             ? options.common.context
                             : std::min<int64_t>(2048, model.config().max_context);
  apply_policy(options.policy, options.common, model, {.context = window}, specs);
  tell_expanded_layers(options.common, specs, model);
  tell_unabsorbed(options.common, specs, model);
  const PerplexityOptions evaluation{
      .window = window,
      .stride = options.stride,
      .max_windows = options.max_windows,
      .mode = options.as_served ? CacheMode::kAsServed : CacheMode::kStrict,
      .ubatch = options.common.ubatch};
  const bool overlap = model.calibration() != nullptr &&
                       num_samples_within(model.calibration()->info, tokens,
                                          num_evaluated_tokens(model, tokens, evaluation)) > 0;
  if (overlap) warn_of_overlap();
  const auto results = evaluate_perplexity(model, tokens, specs, evaluation,
                                           progress_on_stderr(options.common, "perplexity"));

  Json config = common_config(options.common, model);
  config.update({{"file", options.file.empty() ? "assets/sample.txt" : options.file},
                 {"window", window},
                 {"stride", options.stride == 0 ? window : options.stride},
                 {"max_windows", options.max_windows}});
  Json document = make_document("perplexity", model_info(model), config);
  document["calibration_overlap"] = overlap;
  int exit_code = kDone;
  for (const auto& r : results) {
    document["results"].push_back(to_json(r, evaluation.mode));
    if (compresses(r.spec, model.config().num_layers) && r.compressed_tokens == 0) {
      fmt::print(stderr, "kvquant: {}: no token was read compressed, so this is no result\n",
                 r.spec.text);
    }
    if (options.max_ppl_delta && r.ppl_delta_rel > *options.max_ppl_delta) {
      fmt::print(stderr, "kvquant: {}: perplexity rises by {:.2f}%, more than --max-ppl-delta\n",
                 r.spec.text, 100 * r.ppl_delta_rel);
      exit_code = kCheckFailed;
    }
  }
  tell_absorbed(options.common, model);
  write_json(options.common, document);
  if (!json_on_stdout(options.common)) {
    print_table(results);
    fmt::print("{} tokens scored in windows of {}, {}, {}; KL and top-1 against fp16\n",
               results[0].tokens, window, options.as_served ? "as served" : "strict",
               describe_calibration(model));
  }
  return exit_code;
}

}  // namespace

void add_perplexity(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "perplexity", "perplexity, KL divergence and top-1 agreement of cache specs on a text");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags | kAbsorbFlag);
  add_policy_flags(*command, options->policy);
  command->add_option("-f,--file", options->file, "text (default: the sample text)");
  command->add_option("--stride", options->stride, "tokens between windows (default: the window)")
      ->check(at_least(1));
  command->add_option("--windows", options->max_windows, "windows at most (default: all)")
      ->check(at_least(1));
  command->add_flag("--as-served", options->as_served,
                    "the chunk's own tokens and the tail are exact, as in generation");
  command->add_option("--max-ppl-delta", options->max_ppl_delta,
                      "exit 1 when perplexity rises by more than this share of fp16's");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
