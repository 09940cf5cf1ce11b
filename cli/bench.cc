// kvquant bench: speed of the whole model, or of single kernels beside the machine's peaks.
#include <fmt/format.h>

#include <charconv>
#include <memory>
#include <utility>

#include "base/check.h"
#include "bench/flat_rows.h"
#include "bench/model_bench.h"
#include "bench/roofline.h"
#include "cli/bench_alloc.h"
#include "cli/bench_baseline.h"
#include "cli/bench_energy.h"
#include "cli/bench_harness.h"
#include "cli/bench_kernels.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/policy.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  PolicyOptions policy;
  ModelBenchOptions bench;
  std::vector<int> threads = {0};     // 0: all cores
  std::vector<std::string> combined;  // "P,N"
  std::string output = "md";
  std::string nvml;  // a library in place of the system's
  bool peaks = false;
  BaselineOptions baseline;
};

struct Results {
  Json document;
  std::vector<std::vector<std::string>> table;
};

// Of "512,128".
std::pair<int64_t, int64_t> parse_pair(const std::string& text) {
  std::pair<int64_t, int64_t> out;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, out.first);
  auto second = first;
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == ',') {
    second = std::from_chars(first.ptr + 1, end, out.second);
  }
  check_arg(second.ptr == end && second.ec == std::errc() && second.ptr != first.ptr &&
                out.first >= 1 && out.second >= 1,
            "--pg '" + text + "' is not P,N: two whole numbers of at least 1");
  return out;
}

std::string format_rate(double mean, double sd) {
  return mean < 10 ? fmt::format("{:.2f} ± {:.2f}", mean, sd)
                   : fmt::format("{:.1f} ± {:.1f}", mean, sd);
}

Json result_of(const ModelBenchRow& row, int num_threads) {
  Json result = spec_fields(row.spec, CacheMode::kAsServed);
  result.update({{"test", test_name(row)},
                 {"n_prompt", row.n_prompt},
                 {"n_gen", row.n_gen},
                 {"n_depth", row.n_depth},
                 {"batch", row.batch},
                 {"threads", num_threads},
                 {"tokens_per_s_mean", row.tokens_per_s_mean},
                 {"tokens_per_s_sd", row.tokens_per_s_sd},
                 {"ratio_to_first_spec", row.ratio_to_first_spec},
                 {"samples_s", row.samples_s},
                 {"cache_bytes", row.cache_bytes},
                 {"peak_cache_bytes", row.peak_cache_bytes},
                 {"peak_rss_bytes", row.peak_rss_bytes}});
  result.update(energy_fields(row));
  return result;
}

void add_rows(const std::string& model, const std::vector<ModelBenchRow>& rows, int num_threads,
              Results& results) {
  for (const ModelBenchRow& row : rows) {
    results.document["results"].push_back(result_of(row, num_threads));
    results.table.push_back({model, row.spec.text, fmt::format("{}", num_threads), test_name(row),
                             format_rate(row.tokens_per_s_mean, row.tokens_per_s_sd),
                             fmt::format("{:.2f}", row.ratio_to_first_spec),
                             format_bytes(row.cache_bytes), format_bytes(row.peak_cache_bytes)});
  }
}

// The most that a test reads.
PolicyLoad load_of(const ModelBenchOptions& bench) {
  int64_t longest = 1;
  for (const int64_t n : bench.prompt_sizes) longest = std::max(longest, n);
  for (const int64_t n : bench.gen_sizes) longest = std::max(longest, n);
  for (const auto& [prompt, gen] : bench.combined_sizes) longest = std::max(longest, prompt + gen);
  const int64_t depth = *std::max_element(bench.depths.begin(), bench.depths.end());
  const int64_t batch = *std::max_element(bench.batches.begin(), bench.batches.end());
  return {.batch = batch, .context = depth > INT64_MAX - longest ? depth : depth + longest};
}

// One entry of -t: the model is packed anew for its threads. A policy sets the specs.
void run_threads(const CommonOptions& common, const PolicyOptions& policy,
                 const ModelBenchOptions& bench, std::vector<CacheSpec>& specs, Results& results) {
  Model model = load_model(common, RunsOn::kCpuOrGpu);
  if (results.document.is_null()) apply_policy(policy, common, model, load_of(bench), specs);
  for (const CacheSpec& spec : specs) {
    check_spec_fits(spec, static_cast<int>(model.config().num_layers),
                    static_cast<int>(model.config().head_dim));
  }
  if (results.document.is_null()) {
    tell_expanded_layers(common, specs, model);
    tell_unabsorbed(common, specs, model);
    Json config = common_config(common, model);
    config["repetitions"] = bench.repetitions;
    results.document = make_document("bench", model_info(model), config);
  }
  const auto rows = bench_model(model, specs, bench, progress_on_stderr(common, "bench"));
  tell_absorbed(common, model);
  add_rows(model.config().name, rows, model.pool().num_threads(), results);
}

void print(const Options& options, const Results& results) {
  const Json& document = results.document;
  if (options.output == "json") {
    fmt::print("{}\n", document.dump(2, ' ', false, Json::error_handler_t::replace));
  } else if (options.output == "jsonl") {
    fmt::print("{}", to_jsonl(flat_rows(document)));
  } else if (options.output == "csv") {
    fmt::print("{}", to_csv(flat_rows(document)));
  } else {
    fmt::print("{}", format_table(results.table, TableStyle::kMarkdown));
  }
}

Json peaks_of(const CommonOptions& common) {
  ThreadPool pool(common.threads);
  const MachinePeaks peaks = measure_peaks(pool);
  if (!common.quiet) {
    fmt::print(stderr,
               "{} threads, measured peaks: read {:.1f} GB/s, GEMM bf16 {:.0f}, f32 {:.0f} "
               "GFLOP/s\n",
               peaks.num_threads, peaks.read_gb_per_s, peaks.bf16_gemm_gflop_per_s,
               peaks.f32_gemm_gflop_per_s);
  }
  return {{"threads", peaks.num_threads},
          {"read_gb_per_s", peaks.read_gb_per_s},
          {"copy_gb_per_s", peaks.copy_gb_per_s},
          {"bf16_gemm_gflop_per_s", peaks.bf16_gemm_gflop_per_s},
          {"f32_gemm_gflop_per_s", peaks.f32_gemm_gflop_per_s}};
}

void check_baseline(const Options& options) {
  check_arg(options.threads.size() == 1, "--baseline takes one number of threads");
  check_arg(options.policy.policy.empty(), "--baseline has no --policy: give specs with --kv");
}

int run(const Options& options, bool has_output) {
  check_arg(options.common.context == 0, "bench has no --ctx: -d, -p and -n say how much is read");
  check_arg(!(has_output && json_on_stdout(options.common)),
            "--json - and -o both write to standard output: give one of them");
  check_policy(options.policy, options.common);
  auto specs = specs_of(options.common, {"fp16"});
  ModelBenchOptions bench = options.bench;
  bench.ubatch = options.common.ubatch;
  bench.seed = options.common.seed;
  for (const auto& text : options.combined) bench.combined_sizes.push_back(parse_pair(text));
  if (options.baseline.is_asked) {
    check_baseline(options);
    CommonOptions common = options.common;
    common.threads = options.threads[0];
    BaselineOptions baseline = options.baseline;
    baseline.output = options.output;
    become_baseline(baseline, common, bench);
  }
  check_arg(options.baseline.gguf.empty(), "--gguf needs --baseline");
  const auto meter = gpu_meter(options.common.device, options.nvml);
  bench.energy = meter.get();
  Results results;
  results.table = {{"model", "cache", "threads", "test", "tokens/s", "x first spec", "cache bytes",
                    "cache peak"}};
  for (const int num_threads : options.threads) {
    CommonOptions common = options.common;
    common.threads = num_threads;
    run_threads(common, options.policy, bench, specs, results);
  }
  if (options.peaks) {
    CommonOptions common = options.common;
    common.threads = options.threads[0];
    results.document["config"]["peaks"] = peaks_of(common);
  }
  if (options.threads.size() > 1) results.document["config"]["threads"] = options.threads;
  write_json(options.common, results.document);
  if (!json_on_stdout(options.common)) print(options, results);
  return kDone;
}

constexpr const char* kFooter =
    "A test is pp: prefill of so many tokens, tg: decoding of so many, or both (--pg), each at\n"
    "every depth of -d and for every batch of -b, one row per --kv. tokens/s counts all "
    "sequences.\n"
    "Specs take turns within a repetition; x first spec is the median of the repetitions' ratios\n"
    "(above 1: faster than the first --kv). cache peak: most bytes of cache and its scratch "
    "during\nthe test.";

}  // namespace

void add_bench(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("bench", "speed of prefill and decoding, or of kernels");
  command->footer(kFooter);
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags | kAbsorbFlag);
  add_policy_flags(*command, options->policy);
  const auto list = [&](const char* flag, auto& value, int64_t least, const char* help) {
    command->add_option(flag, value, help)
        ->delimiter(',')
        ->check(at_least(least))
        ->capture_default_str();
  };
  command->remove_option(command->get_option("--threads"));  // here a list of them
  command->add_option("-t,--threads", options->threads, "threads, e.g. 1,2 (default: all cores)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024));
  list("-p,--n-prompt", options->bench.prompt_sizes, 0, "prompt lengths, e.g. 512,4096; 0: none");
  list("-n,--n-gen", options->bench.gen_sizes, 0, "generated tokens, e.g. 32,128; 0: none");
  command
      ->add_option("--pg", options->combined,
                   "P,N: a prompt of P tokens, then N generated (repeat for more; also -pg)")
      ->allow_extra_args(false);
  list("-d,--n-depth", options->bench.depths, 0, "tokens in the cache before the test");
  list("-b,--batch", options->bench.batches, 1, "sequences side by side");
  command->add_option("-r,--repetitions", options->bench.repetitions, "repetitions, after one more")
      ->check(at_least(1))
      ->capture_default_str();
  auto* output = command->add_option("-o,--output", options->output, "md, csv, json or jsonl")
                     ->check(CLI::IsMember({"md", "csv", "json", "jsonl"}))
                     ->capture_default_str();
  command->add_option("--nvml", options->nvml,
                      "with --device cuda: library of NVIDIA's counters of energy");
  command->add_flag("--peaks", options->peaks,
                    "measure what the machine reads and multiplies at best, too");
  command->add_flag(
      "--baseline", options->baseline.is_asked,
      "beside other engines that are installed: llama-bench, llama-cpp-python, caches "
      "of transformers");
  command->add_option("--gguf", options->baseline.gguf,
                      "with --baseline: the model for llama.cpp where -m is no GGUF file");
  add_bench_kernels(*command, exit_code);
  add_bench_alloc(*command, exit_code);
  add_bench_harness(*command, exit_code);
  command->callback([options, command, output, &exit_code] {
    if (command->get_subcommands().empty()) exit_code = run(*options, output->count() > 0);
  });
}

}  // namespace kvquant::cli
