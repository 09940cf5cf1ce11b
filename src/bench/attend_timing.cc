#include "bench/attend_timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "bench/attend_timing_cache.h"
#include "formats/codec_table.h"
#include "formats/kv_block.h"
#include "ops/attend.h"

namespace kvquant {
namespace {

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
                      shape.depth - num_queries, cache.run(layer, head)});
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

// The last query of the first head against the reference. The bound is wide: it tells broken from
// working, tests measure accuracy.
void check_result(const AttendTimingShape& shape, const TimingCache& cache, Queries& queries,
                  ThreadPool& pool) {
  const auto jobs = queries.jobs(shape, cache, 0);
  attend(op_shape(shape), jobs, shape.precision, pool, shape.backend);
  const int64_t query = queries.num_queries - 1;
  std::vector<float> expected(static_cast<size_t>(shape.head_dim));
  AttendShape first_head = op_shape(shape);
  first_head.group = 1;
  AttendJob job = jobs[0];
  job.query += query * job.query_stride;
  job.out = expected.data();
  job.first_position += query;
  job.num_queries = 1;
  attend(first_head, {&job, 1}, shape.precision, pool, Backend::kReference);
  const float* out = jobs[0].out + query * queries.stride;
  double error = 0;
  double magnitude = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(double{out[i]} - double{expected[i]});
    if (!(difference <= error)) error = difference;  // NaN too
    magnitude = std::max(magnitude, std::abs(double{expected[i]}));
  }
  if (!(error <= 0.05 * magnitude)) {
    throw std::runtime_error(fmt::format(
        "attend timing: the result differs from the reference by {}, its largest value is {}",
        error, magnitude));
  }
}

template <class Fn>
double milliseconds(Fn&& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double median(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

// A cache with its queries, checked.
class TimedCache {
 public:
  TimedCache(const AttendTimingShape& shape, const CacheSpec& spec, ThreadPool& pool)
      : shape_(shape),
        pool_(pool),
        cache_({shape.num_layers, shape.num_kv_heads, shape.head_dim, shape.depth}, spec),
        step_(shape, 1),
        chunk_(shape, shape.chunk) {
    check_result(shape, cache_, step_, pool);
    if (shape.chunk > 0) check_result(shape, cache_, chunk_, pool);
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      steps_.push_back(step_.jobs(shape, cache_, layer));
      chunks_.push_back(chunk_.jobs(shape, cache_, layer));
    }
  }

  // Milliseconds of one token through all layers.
  double decode_ms() {
    return milliseconds([&] {
      for (const auto& jobs : steps_) run(jobs);
    });
  }
  // Of one chunk through one layer, which are taken in turn.
  double prefill_ms() {
    const auto& jobs = chunks_[next_chunk_++ % chunks_.size()];
    return milliseconds([&] { run(jobs); });
  }
  int64_t num_bytes() const { return cache_.num_bytes(); }

 private:
  void run(std::span<const AttendJob> jobs) {
    attend(op_shape(shape_), jobs, shape_.precision, pool_, shape_.backend);
  }

  const AttendTimingShape& shape_;
  ThreadPool& pool_;
  TimingCache cache_;
  Queries step_, chunk_;
  std::vector<std::vector<AttendJob>> steps_, chunks_;  // of each layer
  size_t next_chunk_ = 0;
};

struct Samples {
  std::vector<double> decode, prefill;  // ms
};

// All of them in turn, each time; the first round warms up.
void take_samples(const AttendTimingShape& shape, std::span<TimedCache* const> caches,
                  std::span<Samples> samples) {
  for (int i = 0; i <= shape.num_runs; ++i) {
    for (size_t k = 0; k < caches.size(); ++k) {
      const double ms = caches[k]->decode_ms();
      if (i > 0) samples[k].decode.push_back(ms);
    }
  }
  for (int i = 0; shape.chunk > 0 && i <= shape.num_runs; ++i) {
    for (size_t k = 0; k < caches.size(); ++k) {
      const double ms = caches[k]->prefill_ms();
      if (i > 0) samples[k].prefill.push_back(ms);
    }
  }
}

double median_ratio(std::vector<double> times, std::span<const double> baselines) {
  for (size_t i = 0; i < times.size(); ++i) times[i] /= baselines[i];
  return times.empty() ? 0 : median(std::move(times));
}

AttendTiming timing_of(const AttendTimingShape& shape, const TimedCache& cache,
                       const Samples& samples, const Samples& fp16) {
  AttendTiming timing;
  timing.cache_bytes = cache.num_bytes();
  timing.decode_ms = median(samples.decode);
  timing.decode_best_ms = *std::min_element(samples.decode.begin(), samples.decode.end());
  timing.decode_gb_per_s = static_cast<double>(timing.cache_bytes) / timing.decode_ms * 1e-6;
  timing.decode_to_fp16 = median_ratio(samples.decode, fp16.decode);
  if (samples.prefill.empty()) return timing;
  // Query i of the chunk sees depth - chunk + i + 1 keys.
  const double keys_per_query =
      static_cast<double>(shape.depth) - static_cast<double>(shape.chunk - 1) / 2;
  const double flops =
      4.0 * static_cast<double>(shape.head_dim * shape.num_heads * shape.chunk) * keys_per_query;
  timing.prefill_ms = median(samples.prefill);
  timing.prefill_best_ms = *std::min_element(samples.prefill.begin(), samples.prefill.end());
  timing.prefill_gflop_per_s = flops / timing.prefill_ms * 1e-6;
  timing.prefill_to_fp16 = median_ratio(samples.prefill, fp16.prefill);
  return timing;
}

void check_spec(const CacheSpec& spec, const AttendTimingShape& shape) {
  check_spec_built(spec);
  const Codec &keys = spec.key, &values = spec.value;
  const bool are_dense = !is_compressed(keys) && !is_compressed(values);
  check_arg(is_compressed(values) || has_latents(keys) ||
                (are_dense && keys.quantizer == values.quantizer),
            fmt::format("attend timing: {}: values must be coded, keys latents, or keys and values "
                        "dense and of one type",
                        spec.text));
  check_arg(shape.num_layers <= INT_MAX && shape.head_dim <= (are_dense ? INT_MAX : kMaxNuqHeadDim),
            fmt::format("attend timing: {} layers of head_dim {} are too large for {}",
                        shape.num_layers, shape.head_dim, spec.text));
  check_spec_fits(spec, static_cast<int>(shape.num_layers), static_cast<int>(shape.head_dim));
}

}  // namespace

void check_attend_timing(const AttendTimingShape& shape, std::span<const CacheSpec> specs) {
  check_arg(shape.num_layers > 0 && shape.num_kv_heads > 0 && shape.num_heads > 0 &&
                shape.num_heads % shape.num_kv_heads == 0,
            "attend timing: layers and heads must be positive, num_heads a multiple of "
            "num_kv_heads");
  check_arg(shape.depth > 0 && shape.chunk >= 0 && shape.chunk <= shape.depth,
            "attend timing: depth must be positive and chunk in [0, depth]");
  check_arg(shape.num_runs > 0, "attend timing: num_runs must be positive");
  check_arg(shape.head_dim > 0 && shape.head_dim % 8 == 0,
            "attend timing: head_dim must be a positive multiple of 8");
  for (const CacheSpec& spec : specs) check_spec(spec, shape);
}

std::vector<AttendTiming> time_attend(const AttendTimingShape& shape,
                                      std::span<const CacheSpec> specs, ThreadPool& pool) {
  check_attend_timing(shape, specs);
  const CacheSpec fp16_spec = parse_spec("fp16");
  TimedCache fp16(shape, fp16_spec, pool);
  Samples all_fp16;
  std::vector<AttendTiming> timings(1);
  for (const CacheSpec& spec : specs) {
    TimedCache cache(shape, spec, pool);
    TimedCache* const both[] = {&fp16, &cache};
    Samples samples[2];
    take_samples(shape, both, samples);
    timings.push_back(timing_of(shape, cache, samples[1], samples[0]));
    timings.back().spec = spec.text;
    const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(all_fp16.decode, samples[0].decode);
    append(all_fp16.prefill, samples[0].prefill);
  }
  if (specs.empty()) {
    TimedCache* const alone[] = {&fp16};
    take_samples(shape, alone, {&all_fp16, 1});
  }
  timings[0] = timing_of(shape, fp16, all_fp16, all_fp16);
  timings[0].spec = fp16_spec.text;
  return timings;
}

}  // namespace kvquant
