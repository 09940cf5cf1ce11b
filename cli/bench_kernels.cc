// kvquant bench kernels: single ops beside what the machine can do, measured in the same run.
#include "cli/bench_kernels.h"

#include <fmt/format.h>

#include <memory>

#include "base/threads.h"
#include "bench/attend_timing.h"
#include "bench/encode_timing.h"
#include "bench/roofline.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  int64_t hidden = 1024, ffn = 2816;  // of the linear layers
  AttendTimingShape attend;
  std::vector<int64_t> depths = {4096, 16384};
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
};

void add_figure(const Figure& figure, Rows& rows, Json& document) {
  const auto number = [](double value) {
    return value > 0 ? fmt::format("{:.1f}", value) : std::string("-");
  };
  rows.push_back({figure.kernel, fmt::format("{:.3f}", 1e3 * figure.time_s),
                  number(figure.gb_per_s), number(figure.gflop_per_s),
                  figure.gvalues_per_s > 0 ? fmt::format("{:.2f}", figure.gvalues_per_s) : "-",
                  fmt::format("{:.0f}%", 100 * figure.share_of_peak)});
  document["results"].push_back({{"kernel", figure.kernel},
                                 {"time_s", figure.time_s},
                                 {"gb_per_s", figure.gb_per_s},
                                 {"gflop_per_s", figure.gflop_per_s},
                                 {"gvalues_per_s", figure.gvalues_per_s},
                                 {"share_of_peak", figure.share_of_peak}});
}

void time_linears(const Options& options, const MachinePeaks& peaks, ThreadPool& pool, Rows& rows,
                  Json& document) {
  std::vector<LinearShape> shapes;
  for (const auto& [type, name] :
       {std::pair{WeightType::kBF16, "bf16"}, std::pair{WeightType::kInt8, "int8"},
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

void time_attends(const Options& options, const MachinePeaks& peaks, ThreadPool& pool, Rows& rows,
                  Json& document) {
  const Precision precision = precision_of(options.common);
  const double gemm_peak = precision == Precision::kBF16 && peaks.bf16_gemm_gflop_per_s > 0
                               ? peaks.bf16_gemm_gflop_per_s
                               : peaks.f32_gemm_gflop_per_s;
  for (const int64_t depth : options.depths) {
    AttendTimingShape shape = options.attend;
    shape.depth = depth;
    shape.precision = precision;
    shape.backend = best_backend();
    const AttendTiming t = time_attend(shape, pool);
    add_figure({fmt::format("attend fp16, decode at {}", depth), t.decode_ms / 1e3,
                t.decode_gb_per_s, 0, t.decode_gb_per_s / peaks.read_gb_per_s},
               rows, document);
    add_figure({fmt::format("attend fp16, {} queries at {}", shape.chunk, depth),
                t.prefill_ms / 1e3, 0, t.prefill_gflop_per_s, t.prefill_gflop_per_s / gemm_peak},
               rows, document);
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
  Rows rows = {{"kernel", "ms", "GB/s", "GFLOP/s", "Gvalues/s", "of peak"}};
  time_linears(options, peaks, pool, rows, document);
  time_attends(options, peaks, pool, rows, document);
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
  command->add_option("-d,--n-depth", options->depths, "tokens in the cache")
      ->delimiter(',')
      ->check(at_least(1))
      ->capture_default_str();
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
