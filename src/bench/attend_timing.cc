#include "bench/attend_timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/half.h"
#include "ops/attend.h"

namespace kvquant {
namespace {

// A dense cache of all layers in one piece of memory: [layer, kv_head, tile, keys or values].
class TimingCache {
 public:
  explicit TimingCache(const AttendTimingShape& shape)
      : num_tiles_((shape.depth + kTileTokens - 1) / kTileTokens),
        tile_bytes_(kTileTokens * shape.head_dim * element_bytes(shape.type)),
        memory_(shape.num_layers * shape.num_kv_heads * num_tiles_ * 2 * tile_bytes_) {
    fill(shape);
    for (int64_t i = 0; i < shape.num_layers * shape.num_kv_heads * num_tiles_; ++i) {
      keys_.push_back(memory_.data() + 2 * i * tile_bytes_);
      values_.push_back(memory_.data() + (2 * i + 1) * tile_bytes_);
    }
    for (int64_t i = 0; i < shape.num_layers * shape.num_kv_heads; ++i) {
      const auto first = static_cast<size_t>(i * num_tiles_);
      const auto count = static_cast<size_t>(num_tiles_);
      AttendRun run;
      run.type = shape.type;
      run.key_tiles = std::span(keys_).subspan(first, count);
      run.value_tiles = std::span(values_).subspan(first, count);
      run.num_tokens = shape.depth;
      runs_.push_back(run);
    }
  }

  std::span<const AttendRun> run(int64_t index) const {
    return std::span(runs_).subspan(static_cast<size_t>(index), 1);
  }
  int64_t num_bytes() const { return memory_.num_bytes(); }

 private:
  // Numbers in [-1, 1) that look random enough for scores to differ.
  void fill(const AttendTimingShape& shape) {
    const int64_t count = memory_.num_bytes() / element_bytes(shape.type);
    uint32_t state = 1;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      const float x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
      switch (shape.type) {
        case DenseType::kF16: reinterpret_cast<Half*>(memory_.data())[i] = to_half(x); break;
        case DenseType::kBF16:
          reinterpret_cast<BFloat16*>(memory_.data())[i] = to_bfloat16(x);
          break;
        case DenseType::kF32: reinterpret_cast<float*>(memory_.data())[i] = x; break;
      }
    }
  }

  int64_t num_tiles_;
  int64_t tile_bytes_;
  Buffer<std::byte> memory_;
  std::vector<const void*> keys_;
  std::vector<const void*> values_;
  std::vector<AttendRun> runs_;
};

// Queries of `num_queries` tokens at the end of the cache, and room for their results.
struct Queries {
  Queries(const AttendTimingShape& shape, int64_t num_queries)
      : num_queries(num_queries),
        stride(shape.num_heads * shape.head_dim),
        query(num_queries * stride),
        out(num_queries * stride) {
    for (int64_t i = 0; i < query.size(); ++i) {
      query[i] = std::sin(static_cast<float>(i % 9973) * 0.7f) * 2;
    }
  }
  std::vector<AttendJob> jobs(const AttendTimingShape& shape, const TimingCache& cache,
                              int64_t layer) {
    std::vector<AttendJob> jobs;
    const int64_t group = shape.num_heads / shape.num_kv_heads;
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const int64_t offset = head * group * shape.head_dim;
      jobs.push_back({query.data() + offset, out.data() + offset, stride, num_queries,
                      shape.depth - num_queries, cache.run(layer * shape.num_kv_heads + head)});
    }
    return jobs;
  }

  int64_t num_queries;
  int64_t stride;
  Buffer<float> query;
  Buffer<float> out;
};

AttendShape op_shape(const AttendTimingShape& shape) {
  return {shape.head_dim, shape.num_heads / shape.num_kv_heads,
          1 / std::sqrt(static_cast<float>(shape.head_dim))};
}

// The first and the last query of the first KV head, against the reference. The bound is wide: it
// tells broken from working, tests measure accuracy.
void check_result(const AttendTimingShape& shape, const TimingCache& cache, Queries& queries,
                  ThreadPool& pool) {
  const auto jobs = queries.jobs(shape, cache, 0);
  attend(op_shape(shape), jobs, shape.precision, pool, shape.backend);
  Buffer<float> expected(queries.out.size());
  for (int64_t query : {int64_t{0}, queries.num_queries - 1}) {
    AttendJob job = jobs[0];
    job.query += query * job.query_stride;
    job.out = expected.data();
    job.first_position += query;
    job.num_queries = 1;
    attend(op_shape(shape), {&job, 1}, shape.precision, pool, Backend::kReference);
    double error = 0;
    double magnitude = 0;
    for (int64_t i = 0; i < op_shape(shape).group * shape.head_dim; ++i) {
      error = std::max(
          error, std::abs(double{jobs[0].out[query * job.query_stride + i]} - double{expected[i]}));
      magnitude = std::max(magnitude, std::abs(double{expected[i]}));
    }
    if (!(error <= 0.05 * magnitude)) {
      throw std::runtime_error("attend timing: the result differs from the reference by " +
                               std::to_string(error));
    }
  }
}

struct Milliseconds {
  double median;
  double best;
};

template <class Fn>
Milliseconds time_runs(int num_runs, Fn&& fn) {
  std::vector<double> samples;
  for (int i = 0; i <= num_runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start;
    if (i > 0) samples.push_back(elapsed.count());
  }
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front()};
}

void time_decode(const AttendTimingShape& shape, const TimingCache& cache, ThreadPool& pool,
                 AttendTiming& timing) {
  Queries queries(shape, 1);
  check_result(shape, cache, queries, pool);
  std::vector<std::vector<AttendJob>> layers;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    layers.push_back(queries.jobs(shape, cache, layer));
  }
  const auto [median, best] = time_runs(shape.num_runs, [&] {
    for (const auto& jobs : layers) {
      attend(op_shape(shape), jobs, shape.precision, pool, shape.backend);
    }
  });
  timing.decode_ms = median;
  timing.decode_best_ms = best;
  timing.decode_gb_per_s = static_cast<double>(cache.num_bytes()) / median * 1e-6;
}

void time_prefill(const AttendTimingShape& shape, const TimingCache& cache, ThreadPool& pool,
                  AttendTiming& timing) {
  Queries queries(shape, shape.chunk);
  check_result(shape, cache, queries, pool);
  int64_t layer = 0;
  const auto [median, best] = time_runs(shape.num_runs, [&] {
    const auto jobs = queries.jobs(shape, cache, layer);
    attend(op_shape(shape), jobs, shape.precision, pool, shape.backend);
    layer = (layer + 1) % shape.num_layers;
  });
  // Query i of the chunk sees depth - chunk + i + 1 keys.
  const double keys_per_query =
      static_cast<double>(shape.depth) - static_cast<double>(shape.chunk - 1) / 2;
  const double flops =
      4.0 * static_cast<double>(shape.head_dim * shape.num_heads * shape.chunk) * keys_per_query;
  timing.prefill_ms = median;
  timing.prefill_best_ms = best;
  timing.prefill_gflop_per_s = flops / median * 1e-6;
}

}  // namespace

AttendTiming time_attend(const AttendTimingShape& shape, ThreadPool& pool) {
  check_arg(shape.num_layers > 0 && shape.num_kv_heads > 0 && shape.head_dim > 0 &&
                shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
            "attend timing: layers, heads and head_dim must be positive, num_heads a multiple of "
            "num_kv_heads");
  check_arg(shape.depth > 0 && shape.chunk >= 0 && shape.chunk <= shape.depth,
            "attend timing: depth must be positive and chunk in [0, depth]");
  check_arg(shape.num_runs > 0, "attend timing: num_runs must be positive");
  const TimingCache cache(shape);
  AttendTiming timing;
  timing.cache_bytes = cache.num_bytes();
  time_decode(shape, cache, pool, timing);
  if (shape.chunk > 0) time_prefill(shape, cache, pool, timing);
  return timing;
}

}  // namespace kvquant
