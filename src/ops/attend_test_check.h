// How the tests of attention judge a kernel: its error against the reference is at most twice that
// of plain loops in the same precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "ops/attend.h"
#include "ops/attend_test_cache.h"

namespace kvquant::testing {

// One job with its own queries and outputs; the tokens of `out` are kGap floats apart.
inline constexpr int64_t kGap = 5;
inline constexpr float kGuard = 12345.0f;

struct TestJob {
  TestJob(const AttendShape& shape, int64_t num_queries, int64_t first_position,
          std::vector<AttendRun> all_runs, TestRandom& random)
      : runs(std::move(all_runs)),
        dense_runs(runs),
        row_size(shape.group * shape.head_dim),
        queries(num_queries),
        position(first_position) {
    query.resize(static_cast<size_t>(num_queries * (row_size + kGap)));
    for (float& x : query) x = random.heavy_tailed();
  }
  AttendJob job(std::vector<float>& out) const {
    out.assign(query.size(), kGuard);
    return {query.data(), out.data(), row_size + kGap, queries, position, runs};
  }
  AttendJob dense_job(std::vector<float>& out) const {
    AttendJob same = job(out);
    same.runs = dense_runs;
    return same;
  }

  std::vector<AttendRun> runs;
  std::vector<AttendRun> dense_runs;  // the same with coded ones decoded to f32, unbiased
  int64_t row_size;
  int64_t queries;
  int64_t position;
  std::vector<float> query;
};

inline float round_if(bool rounds, float x) { return rounds ? round_to_bfloat16(x) : x; }

// See CodedSide::logit_bias.
inline float naive_bias(const AttendShape& shape, const CodedSide& keys, int64_t tile,
                        const float* q) {
  const Half* scales = keys.scales + keys.segment_offset(tile);
  const int64_t half = shape.head_dim / 2;
  float sum = 0;
  for (int64_t c = 0; c < half; ++c) {
    const float a = to_float(scales[c]), b = to_float(scales[c + half]);
    sum += (q[c] * q[c] + q[c + half] * q[c + half]) * (a * a + b * b) / 2;
  }
  return keys.logit_bias / 2 * shape.scale * shape.scale * keys.codebook->noise * sum;
}

// <q, mean>, and behind it <q, D_r> of all components.
inline std::vector<float> naive_projection(const LatentMap& map, const float* q) {
  std::vector<float> out(static_cast<size_t>(1 + map.rank), 0.0f);
  for (int64_t r = 0; r <= map.rank; ++r) {
    const float* row = r == 0 ? map.mean : map.decode + (r - 1) * map.head_dim;
    for (int64_t c = 0; c < map.head_dim; ++c) out[static_cast<size_t>(r)] += q[c] * row[c];
  }
  return out;
}

// Attention as one would write it: plain loops, sums in f32, and with `rounds` the factors of every
// product rounded to bf16. The job has dense runs; those that are coded in `runs` are biased, and
// where their keys are latents, so are those of the job.
inline void naive_row(const AttendShape& shape, const AttendJob& job,
                      const std::vector<AttendRun>& runs, int64_t query, int64_t offset,
                      bool rounds) {
  std::vector<float> p, projected;
  float max = -std::numeric_limits<float>::infinity();
  const auto for_each_key = [&](auto&& fn) {
    for (const AttendRun& run : job.runs) {
      for (int64_t t = 0; t < run.num_tokens; ++t) {
        const int64_t lag = job.first_position + query - run.first_position - t;
        if (run.min_lag <= lag && lag < run.max_lag) fn(run, t / kTileTokens, t % kTileTokens);
      }
    }
  };
  for_each_key([&](const AttendRun& run, int64_t tile, int64_t t) {
    const AttendRun& stored = runs[static_cast<size_t>(&run - job.runs.data())];
    const LatentMap* map = stored.key_latents();
    if (map != nullptr && projected.empty()) {
      projected = naive_projection(*map, job.query + offset);
    }
    const float* q = map != nullptr ? projected.data() + 1 : job.query + offset;
    float dot = 0;
    for (int64_t c = 0; c < (map != nullptr ? map->rank : shape.head_dim); ++c) {
      const float k = tile_element(run, run.key_tiles[static_cast<size_t>(tile)], key_index(t, c));
      dot += round_if(rounds, q[c]) * round_if(rounds, k);
    }
    if (map != nullptr) dot += projected[0];
    const bool is_biased = stored.is_coded() && stored.key_latents() == nullptr;
    const float bias =
        is_biased ? naive_bias(shape, *stored.coded_keys, tile, job.query + offset) : 0;
    p.push_back(dot * shape.scale + bias);
    max = std::max(max, p.back());
  });
  float sum = 0;
  for (float& x : p) sum += x = std::exp(x - max);
  std::vector<float> out(static_cast<size_t>(shape.head_dim), 0.0f);
  size_t i = 0;
  for_each_key([&](const AttendRun& run, int64_t tile, int64_t t) {
    const float weight = round_if(rounds, p[i++]);
    for (int64_t c = 0; c < shape.head_dim; ++c) {
      const float v = tile_element(run, run.value_tiles[static_cast<size_t>(tile)],
                                   value_index(t, c, shape.head_dim));
      out[static_cast<size_t>(c)] += weight * round_if(rounds, v);
    }
  });
  for (int64_t c = 0; c < shape.head_dim; ++c) {
    job.out[offset + c] = p.empty() ? 0 : out[static_cast<size_t>(c)] / sum;
  }
}

inline void naive(const AttendShape& shape, const TestJob& test, bool rounds,
                  std::vector<float>& out) {
  const AttendJob job = test.dense_job(out);
  for (int64_t q = 0; q < job.num_queries; ++q) {
    for (int64_t h = 0; h < shape.group; ++h) {
      const int64_t offset = q * job.query_stride + h * shape.head_dim;
      naive_row(shape, job, test.runs, q, offset, rounds);
    }
  }
}

inline double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    if (!(difference <= largest)) largest = difference;  // NaN too
  }
  return largest;
}

inline double max_abs(const std::vector<float>& a) {
  double largest = 0;
  for (float x : a) largest = x == kGuard ? largest : std::max(largest, double{std::abs(x)});
  return largest;
}

struct Variant {
  Backend backend;
  Precision precision;
  bool rounds() const {
    return (has_bf16_dots(backend) || is_cuda(backend)) && precision == Precision::kBF16;
  }
  std::string name() const {
    return std::string(backend_name(backend)) + (precision == Precision::kF32 ? " f32" : " bf16");
  }
};

inline std::vector<Variant> fast_variants() {
  std::vector<Variant> variants;
  for (Backend backend : available_backends()) {
    if (backend == Backend::kReference) continue;
    variants.push_back({backend, Precision::kF32});
    variants.push_back({backend, Precision::kBF16});
  }
  for (Backend backend : cuda_backends()) {
    variants.push_back({backend, Precision::kF32});
    variants.push_back({backend, Precision::kBF16});
  }
  return variants;
}

// The largest error of several jobs, each by the reference, naively and by every variant, summed
// up: where a softmax is decided by few keys, the errors of a single job are a matter of luck, so
// one alone may be ten times the naive one's, their sum twice.
class ErrorCheck {
 public:
  explicit ErrorCheck(const AttendShape& shape, std::vector<Variant> variants = fast_variants())
      : shape_(shape), variants_(std::move(variants)) {}

  void add(const TestJob& test) {
    std::vector<float> expected;
    std::vector<float> out;
    const AttendJob reference = test.job(expected);
    attend(shape_, {&reference, 1}, Precision::kF32, pool_, Backend::kReference);
    double error[2] = {};
    for (bool rounds : {false, true}) {
      naive(shape_, test, rounds, out);
      error[rounds] = max_difference(out, expected);
      naive_error_[rounds] += error[rounds];
    }
    floor_ += max_abs(expected) * 0x1p-22;
    for (size_t i = 0; i < variants_.size(); ++i) {
      const AttendJob job = test.job(out);
      attend(shape_, {&job, 1}, variants_[i].precision, pool_, variants_[i].backend);
      const double here = max_difference(out, expected);
      EXPECT_LE(here, 10 * error[variants_[i].rounds()] + max_abs(expected) * 0x1p-8)
          << variants_[i].name();
      errors_[i] += here;
    }
  }

  // Of the jobs from here on.
  void set_group(int64_t group) { shape_.group = group; }

  // The naive result can be exact by luck where a rounding or two is legitimate.
  void expect_within_twice_naive(const std::string& what) const {
    for (size_t i = 0; i < variants_.size(); ++i) {
      EXPECT_LE(errors_[i], 2 * naive_error_[variants_[i].rounds()] + floor_)
          << variants_[i].name() << ", " << what;
    }
  }

 private:
  AttendShape shape_;
  ThreadPool pool_{1};
  std::vector<Variant> variants_;
  std::vector<double> errors_ = std::vector<double>(variants_.size());
  double naive_error_[2] = {};
  double floor_ = 0;
};

inline AttendShape shape_of(int64_t head_dim, int64_t group) {
  return {head_dim, group, 1 / std::sqrt(static_cast<float>(head_dim))};
}

}  // namespace kvquant::testing
