#include "bench/roofline.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "ops/panel_gemm.h"

namespace kvquant {
namespace {

constexpr int64_t kSpanBytes = int64_t{1} << 20;  // a task of the bandwidth loops
constexpr int64_t kNumSpans = 512;
constexpr int kBandwidthPasses = 7;
constexpr int64_t kPrefillRows = 512;
constexpr int kRuns = 11;
// Weights that a timing goes round, several times any last-level cache's share.
constexpr int64_t kColdBytes = int64_t{256} << 20;

template <class Fn>
double seconds(Fn&& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Sums a span a cache line at a time. The sums are independent, so the compiler uses vectors; even
// those of 128 bits load several times faster than memory delivers.
uint64_t read_span(const std::byte* data) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum[8] = {};
  for (int64_t i = 0; i < kSpanBytes / 8; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t s : sum) total += s;
  return total;
}

void measure_bandwidth(ThreadPool& pool, MachinePeaks& peaks) {
  Buffer<std::byte> buffer(kNumSpans * kSpanBytes);
  std::vector<uint64_t> sums(kNumSpans);
  std::vector<double> reads, copies;
  for (int pass = 0; pass < kBandwidthPasses; ++pass) {
    reads.push_back(seconds([&] {
      pool.parallel_for(kNumSpans, [&](int64_t i, int) {
        sums[static_cast<size_t>(i)] += read_span(buffer.data() + i * kSpanBytes);
      });
    }));
  }
  for (int pass = 0; pass < kBandwidthPasses / 2; ++pass) {
    copies.push_back(seconds([&] {
      pool.parallel_for(kNumSpans / 2, [&](int64_t i, int) {
        std::byte* span = buffer.data() + i * kSpanBytes;
        std::memcpy(span + kNumSpans / 2 * kSpanBytes, span, kSpanBytes);
      });
    }));
  }
  // The buffer is zero. Saying so keeps the compiler from dropping the reads.
  for (const uint64_t sum : sums) {
    if (sum != 0) throw std::runtime_error("roofline: memory that was zero is not");
  }
  const double bytes = static_cast<double>(buffer.num_bytes());
  peaks.read_gb_per_s = bytes / *std::min_element(reads.begin(), reads.end()) / 1e9;
  peaks.read_median_gb_per_s = bytes / median(reads) / 1e9;
  peaks.copy_gb_per_s = bytes / *std::min_element(copies.begin(), copies.end()) / 1e9;
}

// oneDNN's product of 64 rows with a panel of 512 inputs: x, panel and result stay in the core's
// L2.
double gemm_peak(PanelGemm::Type type, ThreadPool& pool) {
  constexpr int64_t kRows = 64, kIn = 512;
  constexpr int kRepeats = 400, kPasses = 10;
  struct Operands {
    Buffer<float> x{kRows * kIn}, panel{kIn * kPanelOutputs}, y{kRows * kPanelOutputs};
  };
  PanelGemm gemm;
  PanelGemm::Plan& plan = gemm.plan(type, kRows, kIn, pool.num_threads());
  std::vector<Operands> operands(static_cast<size_t>(pool.num_threads()));
  double best_s = INFINITY;
  for (int pass = 0; pass < kPasses; ++pass) {
    best_s = std::min(best_s, seconds([&] {
                        // As many tasks as threads, long enough that each thread takes one.
                        pool.parallel_for(pool.num_threads(), [&](int64_t, int worker) {
                          Operands& own = operands[static_cast<size_t>(worker)];
                          for (int i = 0; i < kRepeats; ++i) {
                            PanelGemm::multiply(plan, worker, own.x.data(), own.panel.data(),
                                                own.y.data());
                          }
                        });
                      }));
  }
  return 2.0 * kRows * kIn * kPanelOutputs * kRepeats * pool.num_threads() / best_s / 1e9;
}

float pseudo_random(uint32_t seed) {  // in [-1, 1)
  seed = (seed ^ seed >> 16) * 0x7FEB352Du;
  seed = (seed ^ seed >> 15) * 0x846CA68Bu;
  return static_cast<float>((seed ^ seed >> 16) >> 8) * 0x1p-23f - 1.0f;
}

PackedMatrix make_weights(const LinearShape& shape, ThreadPool& pool) {
  if (has_groups(shape.type)) {
    const int largest = (1 << code_bits(shape.type)) - 1;
    return PackedMatrix::pack_groups(
        shape.num_out, shape.num_in, shape.type,
        [largest](int64_t row, QuantizedRow out) {
          for (size_t i = 0; i < out.codes.size(); ++i) {
            const size_t code = static_cast<size_t>(row) * 37 + i * 101;
            out.codes[i] = static_cast<uint8_t>(code & static_cast<size_t>(largest));
          }
          std::fill(out.scales.begin(), out.scales.end(), to_half(0.005f));
          std::fill(out.offsets.begin(), out.offsets.end(), to_half(-0.64f));
        },
        pool);
  }
  return PackedMatrix::pack(
      shape.num_out, shape.num_in, shape.type,
      [](int64_t row, std::span<float> out) {
        const auto seed = static_cast<uint32_t>(row * 65537);
        for (size_t i = 0; i < out.size(); ++i) {
          out[i] = pseudo_random(seed + static_cast<uint32_t>(i));
        }
      },
      pool);
}

// Throws unless the last row of `out` agrees with the reference: bf16 inputs may be off by 2^-8
// each, and errors of random sign add up with the square root of their number.
void check_last_row(const LinearShape& shape, const PackedMatrix& w, TensorView<const float, 2> x,
                    TensorView<const float, 2> out, ThreadPool& pool) {
  LinearScratch scratch;
  const int64_t last = x.shape[0] - 1;
  Buffer<float> expected(shape.num_out);
  linear(w, row_major(x.row(last).data(), {1, shape.num_in}),
         row_major(expected.data(), {1, shape.num_out}), Epilogue::kStore,
         {Precision::kF32, scratch, pool, Backend::kReference});
  const double tolerance = 0x1p-6 * std::sqrt(static_cast<double>(shape.num_in));
  for (int64_t i = 0; i < shape.num_out; ++i) {
    if (!(std::abs(double{out(last, i)} - expected[i]) <= tolerance)) {
      throw std::runtime_error(fmt::format("roofline: linear {}: output {} of row {} is {}, not {}",
                                           shape.name, i, last, out(last, i), expected[i]));
    }
  }
}

double share_of_peak(const LinearTiming& timing, WeightType type, const MachinePeaks& peaks) {
  const bool bf16 = type != WeightType::kF32 && peaks.bf16_gemm_gflop_per_s > 0;
  const double gemm = bf16 ? peaks.bf16_gemm_gflop_per_s : peaks.f32_gemm_gflop_per_s;
  return std::max(timing.gb_per_s / peaks.read_gb_per_s, timing.gflop_per_s / gemm);
}

LinearTiming time_shape(const LinearShape& shape, std::span<const PackedMatrix> weights,
                        int64_t num_rows, ThreadPool& pool) {
  LinearScratch scratch;
  Buffer<float> x(num_rows * shape.num_in), out(num_rows * shape.num_out);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = pseudo_random(static_cast<uint32_t>(i));
  const auto input = row_major(static_cast<const float*>(x.data()), {num_rows, shape.num_in});
  const auto output = row_major(out.data(), {num_rows, shape.num_out});
  const auto multiply = [&](const PackedMatrix& w) {
    linear(w, input, output, Epilogue::kStore, {Precision::kBF16, scratch, pool});
  };
  multiply(weights[0]);
  check_last_row(shape, weights[0], input,
                 row_major(static_cast<const float*>(out.data()), {num_rows, shape.num_out}), pool);

  std::vector<double> times;
  for (int run = 0; run < kRuns; ++run) {
    times.push_back(seconds([&] {
                      for (const PackedMatrix& w : weights) multiply(w);
                    }) /
                    static_cast<double>(weights.size()));
  }
  LinearTiming timing{.name = shape.name, .num_rows = num_rows, .time_s = median(times)};
  const auto [fastest, slowest] = std::minmax_element(times.begin(), times.end());
  timing.spread_s = *slowest - *fastest;
  timing.bytes = static_cast<double>(weights[0].num_bytes() + x.num_bytes() + out.num_bytes());
  timing.flops =
      2.0 * static_cast<double>(num_rows * shape.num_out) * static_cast<double>(shape.num_in);
  timing.gb_per_s = timing.bytes / timing.time_s / 1e9;
  timing.gflop_per_s = timing.flops / timing.time_s / 1e9;
  return timing;
}

}  // namespace

MachinePeaks measure_peaks(ThreadPool& pool) {
  MachinePeaks peaks{.num_threads = pool.num_threads()};
  measure_bandwidth(pool, peaks);
  peaks.f32_gemm_gflop_per_s = gemm_peak(PanelGemm::Type::kF32, pool);
  if (has_bf16_dots(available_backends().back())) {
    peaks.bf16_gemm_gflop_per_s = gemm_peak(PanelGemm::Type::kBF16, pool);
  }
  return peaks;
}

std::vector<LinearTiming> time_linear(std::span<const LinearShape> shapes,
                                      const MachinePeaks& peaks, ThreadPool& pool) {
  std::vector<LinearTiming> timings;
  for (const LinearShape& shape : shapes) {
    std::vector<PackedMatrix> weights;
    int64_t bytes = 0;
    while (bytes < kColdBytes) {
      weights.push_back(make_weights(shape, pool));
      bytes += weights.back().num_bytes();
    }
    timings.push_back(time_shape(shape, weights, 1, pool));
    timings.push_back(time_shape(shape, {weights.data(), 1}, kPrefillRows, pool));
    for (size_t i = timings.size() - 2; i < timings.size(); ++i) {
      timings[i].share_of_peak = share_of_peak(timings[i], shape.type, peaks);
    }
  }
  return timings;
}

}  // namespace kvquant
