// kvquant bench kernels: single ops beside what the machine can do, measured in the same run.
#include "cli/bench_kernels.h"

#include <fmt/format.h>

#include <memory>
#include <span>
#include <stdexcept>

#include "base/threads.h"
#include "bench/attend_timing.h"
#include "bench/encode_timing.h"
#include "bench/roofline.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

// Beside fp16.
const std::vector<std::string> kAttendSpecs = {"nuq4",    "nuq4-1%", "nuq3",
                                               "nuq3-1%", "nuq2",    "nuq2-1%",
                                               "int8",    "int4",    "k=nuq4-1%,v=had+nuq4"};

struct Options {
  CommonOptions common;
  int64_t hidden = 1024, ffn = 2816;  // of the linear layers
  AttendTimingShape attend;           // of one depth after the other
  std::vector<int64_t> depths = {4096, 16384};
  int64_t num_runs = 10;
};

using Rows = std::vector<std::vector<std::string>>;

void add_peaks(const MachinePeaks& peaks, Json& document) {
  document["results"].push_back({{"kernel", "peaks"},
                                 {"threads", peaks.num_threads},
                                 {"read_gb_per_s", peaks.read_gb_per_s},
                                 {"read_median_gb_per_s", peaks.read_median_gb_per_s},
                                 {"copy_gb_per_s", peaks.copy_gb_per_s},
                                 {"bf16_gemm_gflop_per_s", peaks.bf16_gemm_gflop_per_s},
                                 {"f32_gemm_gflop_per_s", peaks.f32_gemm_gflop_per_s}});
}

struct Figure {
  std::string kernel;
  double time_s = 0, gb_per_s = 0, gflop_per_s = 0, share_of_peak = 0;
  double gvalues_per_s = 0;
  double to_fp16 = 0;  // time over that of fp16
  int64_t bytes = 0;
};

void add_figure(const Figure& figure, Rows& rows, Json& document) {
  const auto number = [](double value) {
    return value > 0 ? fmt::format("{:.1f}", value) : std::string("-");
  };
  rows.push_back({figure.kernel, fmt::format("{:.3f}", 1e3 * figure.time_s),
                  number(figure.gb_per_s), number(figure.gflop_per_s),
                  figure.gvalues_per_s > 0 ? fmt::format("{:.2f}", figure.gvalues_per_s) : "-",
                  fmt::format("{:.0f}%", 100 * figure.share_of_peak),
                  figure.to_fp16 > 0 ? fmt::format("{:.2f}", figure.to_fp16) : "-"});
  Json result = {{"kernel", figure.kernel},
                 {"time_s", figure.time_s},
                 {"gb_per_s", figure.gb_per_s},
                 {"gflop_per_s", figure.gflop_per_s},
                 {"gvalues_per_s", figure.gvalues_per_s},
                 {"share_of_peak", figure.share_of_peak}};
  if (figure.to_fp16 > 0) result["time_to_fp16"] = figure.to_fp16;
  if (figure.bytes > 0) result["bytes"] = figure.bytes;
  document["results"].push_back(result);
}

void time_linears(const Options& options, const MachinePeaks& peaks, ThreadPool& pool, Rows& rows,
                  Json& document) {
  std::vector<LinearShape> shapes;
  for (const auto& [type, name] :
       {std::pair{WeightType::kBF16, "bf16"}, std::pair{WeightType::kInt8, "int8"},
        std::pair{WeightType::kInt8x2, "int8x2"}, std::pair{WeightType::kInt6x2, "int6x2"},
        std::pair{WeightType::kInt5, "int5"}, std::pair{WeightType::kInt4, "int4"},
        std::pair{WeightType::kF32, "f32"}}) {
    shapes.push_back({fmt::format("linear {} {}x{}", name, options.ffn, options.hidden),
                      options.ffn, options.hidden, type});
  }
  for (const LinearTiming& t : time_linear(shapes, peaks, pool)) {
    add_figure({fmt::format("{}, {} rows", t.name, t.num_rows), t.time_s, t.gb_per_s, t.gflop_per_s,
                t.share_of_peak},
               rows, document);
  }
}

AttendTimingShape attend_shape(const Options& options, int64_t depth) {
  AttendTimingShape shape = options.attend;
  shape.depth = depth;
  shape.precision = precision_of(options.common);
  shape.backend = best_backend();
  shape.num_runs = static_cast<int>(options.num_runs);
  return shape;
}

bool can_time_attend(const AttendTimingShape& shape, const CacheSpec& spec) {
  try {
    check_attend_timing(shape, {&spec, 1});
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

// All specs asked for but fp16, which is timed anyway; checked, so that a mistake is told before
// the work.
std::vector<CacheSpec> attend_specs(const Options& options) {
  std::vector<CacheSpec> specs = specs_of(options.common, kAttendSpecs);
  std::erase_if(specs, [](const CacheSpec& spec) {
    return to_string(spec.key) == "fp16" && to_string(spec.value) == "fp16";
  });
  const AttendTimingShape first = attend_shape(options, options.depths.at(0));
  if (options.common.kv.empty()) {  // nobody asked for those that this head_dim can't have
    std::erase_if(specs, [&](const CacheSpec& spec) { return !can_time_attend(first, spec); });
  }
  for (const int64_t depth : options.depths) {
    check_attend_timing(attend_shape(options, depth), specs);
  }
  return specs;
}

void time_attends(const Options& options, std::span<const CacheSpec> specs,
                  const MachinePeaks& peaks, ThreadPool& pool, Rows& rows, Json& document) {
  const Precision precision = precision_of(options.common);
  const double gemm_peak = precision == Precision::kBF16 && peaks.bf16_gemm_gflop_per_s > 0
                               ? peaks.bf16_gemm_gflop_per_s
                               : peaks.f32_gemm_gflop_per_s;
  for (const int64_t depth : options.depths) {
    AttendTimingShape shape = attend_shape(options, depth);
    for (const AttendTiming& t : time_attend(shape, specs, pool)) {
      Figure step{fmt::format("attend {}, decode at {}", t.spec, depth), t.decode_ms / 1e3,
                  t.decode_gb_per_s, 0, t.decode_gb_per_s / peaks.read_gb_per_s};
      step.to_fp16 = t.decode_to_fp16;
      step.bytes = t.cache_bytes;
      add_figure(step, rows, document);
      Figure chunk{fmt::format("attend {}, {} queries at {}", t.spec, shape.chunk, depth),
                   t.prefill_ms / 1e3, 0, t.prefill_gflop_per_s, t.prefill_gflop_per_s / gemm_peak};
      chunk.to_fp16 = t.prefill_to_fp16;
      add_figure(chunk, rows, document);
    }
  }
}

void time_encodes(const Options& options, const MachinePeaks& peaks, ThreadPool& pool, Rows& rows,
                  Json& document) {
  if (options.attend.head_dim % 16 != 0 || options.attend.head_dim > 256) return;
  for (const int bits : {4, 3}) {
    const EncodeTimingShape shape{.num_kv_heads = options.attend.num_kv_heads,
                                  .head_dim = options.attend.head_dim,
                                  .bits = bits};
    for (const EncodeTiming& t : time_encode(shape, pool)) {
      Figure figure{fmt::format("encode nuq{}-1%, {}", bits, t.name), t.time_s, t.gb_per_s};
      figure.share_of_peak = t.gb_per_s / peaks.read_gb_per_s;
      figure.gvalues_per_s = t.gvalues_per_s;
      add_figure(figure, rows, document);
    }
  }
}

int run(const Options& options) {
  const std::vector<CacheSpec> specs = attend_specs(options);
  ThreadPool pool(options.common.threads);
  const MachinePeaks peaks = measure_peaks(pool);
  Json document = make_document(
      "bench kernels", nullptr,
      {{"threads", pool.num_threads()},
       {"precision", precision_of(options.common) == Precision::kBF16 ? "bf16" : "f32"},
       {"num_layers", options.attend.num_layers},
       {"num_q_heads", options.attend.num_heads},
       {"num_kv_heads", options.attend.num_kv_heads},
       {"head_dim", options.attend.head_dim}});
  add_peaks(peaks, document);
  Rows rows = {{"kernel", "ms", "GB/s", "GFLOP/s", "Gvalues/s", "of peak", "ms / fp16"}};
  time_linears(options, peaks, pool, rows, document);
  time_attends(options, specs, peaks, pool, rows, document);
  time_encodes(options, peaks, pool, rows, document);
  write_json(options.common, document);
  if (json_on_stdout(options.common)) return kDone;
  fmt::print(
      "{} threads, measured peaks: read {:.1f} GB/s (median {:.1f}), copy {:.1f} GB/s, GEMM "
      "bf16 {:.0f}, f32 {:.0f} GFLOP/s\n{}",
      peaks.num_threads, peaks.read_gb_per_s, peaks.read_median_gb_per_s, peaks.copy_gb_per_s,
      peaks.bf16_gemm_gflop_per_s, peaks.f32_gemm_gflop_per_s,
      format_table(rows, TableStyle::kMarkdown));
  return kDone;
}

}  // namespace

void add_bench_kernels(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = bench.add_subcommand("kernels", "single ops beside the machine's measured peaks");
  command->add_option("-t,--threads", options->common.threads, "threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
  command->add_option("--precision", options->common.precision, "arithmetic of matrix products")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str();
  add_common_flags(*command, options->common, 0);
  const auto number = [&](const char* flag, int64_t& value, const char* help) {
    command->add_option(flag, value, help)->check(at_least(1))->capture_default_str();
  };
  number("--layers", options->attend.num_layers, "layers of the cache");
  number("--heads", options->attend.num_heads, "query heads");
  number("--kv-heads", options->attend.num_kv_heads, "KV heads");
  number("--head-dim", options->attend.head_dim, "channels of a head");
  number("--chunk", options->attend.chunk, "queries of a prefill chunk");
  command
      ->add_option("-r,--runs", options->num_runs, "timed runs of attention, after one to warm up")
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}))
      ->capture_default_str();
  command
      ->add_option("--kv", options->common.kv,
                   "cache spec to time attention over, beside fp16 (repeat for more; default: " +
                       fmt::format("{}", fmt::join(kAttendSpecs, ", ")) + ")")
      ->allow_extra_args(false);
  command->add_option("-d,--n-depth", options->depths, "tokens in the cache")
      ->delimiter(',')
      ->check(at_least(1))
      ->capture_default_str();
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
