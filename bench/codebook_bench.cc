// The exact codebook fit against Lloyd's algorithm: time, and `cost`, the mean squared error on the
// data, which is normal, clipped and normalised as after 1% of outliers.
//   codebook_bench --benchmark_repetitions=10 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"
#include "quant/codebook_fit.h"
#include "quant/codebook_methods.h"

namespace kvquant {
namespace {

std::vector<float> clipped_normals(int64_t count) {
  const CounterRng rng(42);
  std::vector<float> values;
  for (uint64_t i = 0; static_cast<int64_t>(values.size()) < count; ++i) {
    const float x = rng.normals(i).first / 2.5758f;
    if (std::fabs(x) <= 1) values.push_back(x);
  }
  return values;
}

void set_counters(benchmark::State& state, std::span<const float> values,
                  std::span<const float> levels) {
  const double cost = codebook_cost({values, {}}, levels);
  state.counters["cost"] = cost / static_cast<double>(values.size());
}

void gather(benchmark::State& state) {
  const auto values = clipped_normals(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(gather_cells(values, {}));
}
BENCHMARK(gather)->ArgName("values")->Arg(1'000'000)->Unit(benchmark::kMillisecond);

void stream_into_histogram(benchmark::State& state) {
  const auto values = clipped_normals(state.range(0));
  for (auto _ : state) {
    WeightedHistogram histogram;
    for (const float x : values) histogram.add(x, 1);
    benchmark::DoNotOptimize(histogram.total_weight());
  }
}
BENCHMARK(stream_into_histogram)->ArgName("values")->Arg(1'000'000)->Unit(benchmark::kMillisecond);

// The dynamic program alone, on as many cells as there can be.
void exact_from_cells(benchmark::State& state) {
  const auto values = clipped_normals(1'000'000);
  WeightedHistogram histogram;
  for (const float x : values) histogram.add(x, 1);
  std::vector<float> levels;
  for (auto _ : state) {
    levels = compute_nuq_codebook(histogram, static_cast<int>(state.range(0)));
  }
  set_counters(state, values, levels);
}
BENCHMARK(exact_from_cells)->ArgName("bits")->Arg(4)->Arg(3)->Arg(2)->Unit(benchmark::kMillisecond);

void exact(benchmark::State& state) {
  const auto values = clipped_normals(state.range(1));
  std::vector<float> levels;
  for (auto _ : state) levels = compute_nuq_codebook(values, {}, static_cast<int>(state.range(0)));
  set_counters(state, values, levels);
}

void lloyd(benchmark::State& state) {
  const auto values = clipped_normals(state.range(1));
  const int bits = static_cast<int>(state.range(0));
  std::vector<float> levels;
  for (auto _ : state) levels = lloyd_codebook({values, {}}, bits, LloydStart::kPlusPlus);
  set_counters(state, values, levels);
}

void sizes(benchmark::internal::Benchmark* family) {
  family->ArgNames({"bits", "values"})->Unit(benchmark::kMillisecond);
  for (const int bits : {4, 3, 2}) {
    for (const int values : {4'000, 100'000}) family->Args({bits, values});
  }
}
BENCHMARK(exact)->Apply(sizes);
BENCHMARK(lloyd)->Apply(sizes);

}  // namespace
}  // namespace kvquant
