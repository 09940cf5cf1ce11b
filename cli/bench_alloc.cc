// kvquant bench alloc: what an append of outliers costs while a sequence grows, in blocked storage
// and in arrays that are copied.
#include "cli/bench_alloc.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "bench/alloc_timing.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  AllocTimingShape shape;
  std::vector<int64_t> lengths = {1024, 2048, 8192, 32768};
  bool check = false;
};

using Rows = std::vector<std::vector<std::string>>;

std::string format_ns(double ns) {
  return ns < 9999.5 ? fmt::format("{:.0f} ns", ns) : fmt::format("{:.0f} µs", ns / 1e3);
}

void add_timing(const AllocTiming& t, Rows& rows, Json& document) {
  rows.push_back({name_of(t.variant), fmt::format("{}", t.num_tokens),
                  fmt::format("{:.2f}", t.total_ms), format_ns(t.append_ns), format_ns(t.median_ns),
                  format_ns(t.p99_ns), format_ns(t.chunk_p99_ns), format_ns(t.growth_p99_ns),
                  format_ns(t.time_p99_ns), format_ns(t.max_ns), format_bytes(t.peak_bytes),
                  format_bytes(t.final_bytes)});
  document["results"].push_back({{"variant", name_of(t.variant)},
                                 {"num_tokens", t.num_tokens},
                                 {"total_ms", t.total_ms},
                                 {"append_ns", t.append_ns},
                                 {"median_ns", t.median_ns},
                                 {"p99_ns", t.p99_ns},
                                 {"chunk_p99_ns", t.chunk_p99_ns},
                                 {"growth_p99_ns", t.growth_p99_ns},
                                 {"time_p99_ns", t.time_p99_ns},
                                 {"max_ns", t.max_ns},
                                 {"peak_bytes", t.peak_bytes},
                                 {"final_bytes", t.final_bytes}});
}

void add_check(const AllocCheck& check, Rows& rows, Json& document) {
  rows.push_back(
      {check.name, fmt::format("{}", check.num_tokens), fmt::format("{:.2f}", check.ratio),
       fmt::format("{} {:g}", check.direction, check.target), check.passed ? "PASS" : "FAIL"});
  document["results"].push_back({{"check", check.name},
                                 {"num_tokens", check.num_tokens},
                                 {"ratio", check.ratio},
                                 {"target", check.target},
                                 {"direction", check.direction},
                                 {"passed", check.passed}});
}

int run(const Options& options) {
  const auto timings = time_alloc(options.shape, options.lengths);
  const auto checks = check_alloc(timings);
  Json document = make_document("bench alloc", nullptr,
                                {{"num_channels", options.shape.num_channels},
                                 {"outliers_per_token", options.shape.outliers_per_token},
                                 {"block_size", options.shape.block_size},
                                 {"num_runs", options.shape.num_runs}});
  Rows times = {{"variant", "tokens", "total ms", "append", "median", "p99", "p99 of 64",
                 "p99 growing", "p99 of time", "max", "peak", "final"}};
  for (const AllocTiming& timing : timings) add_timing(timing, times, document);
  Rows ratios = {{"check", "tokens", "ratio", "target", ""}};
  for (const AllocCheck& check : checks) add_check(check, ratios, document);
  write_json(options.common, document);
  const bool passed =
      std::all_of(checks.begin(), checks.end(), [](const AllocCheck& c) { return c.passed; });
  const int code = options.check && !passed ? kCheckFailed : kDone;
  if (json_on_stdout(options.common)) return code;
  fmt::print("{}", format_table(times, TableStyle::kMarkdown));
  if (!checks.empty()) fmt::print("\n{}", format_table(ratios, TableStyle::kMarkdown));
  return code;
}

constexpr const char* kFooter =
    "Times are of single appends (one token), medians over the runs. append: mean over the last\n"
    "tenth of a sequence. p99: 99th percentile of all appends; a doubling vector copies too "
    "rarely\n"
    "to show there. p99 of 64: of 64 appends in a row, per append. p99 growing: of the appends "
    "that\n"
    "ask for memory. p99 of time: appends that take longer make up 1% of the time, so it is what\n"
    "something that comes at a random moment may wait for; this one is checked, at 32768 tokens.";

}  // namespace

void add_bench_alloc(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = bench.add_subcommand(
      "alloc", "appending outliers as a sequence grows: blocked storage, copying, doubling");
  command->footer(kFooter);
  add_common_flags(*command, options->common, 0);
  const auto number = [&](const char* flag, auto& value, const char* help) {
    command->add_option(flag, value, help)->check(at_least(1))->capture_default_str();
  };
  command->add_option("-d,--n-depth", options->lengths, "tokens of a sequence")
      ->delimiter(',')
      ->check(at_least(10))
      ->capture_default_str();
  number("--channels", options->shape.num_channels, "channels of a token");
  number("--outliers", options->shape.outliers_per_token, "outliers of a token, on average");
  number("--block-size", options->shape.block_size, "tokens of a block");
  number("-r,--repetitions", options->shape.num_runs,
         "runs of copying; the others run five times as often");
  command->add_flag("--check", options->check, "exit code 1 when a check fails");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
