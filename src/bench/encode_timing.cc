#include "bench/encode_timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <stdexcept>

#include "base/buffer.h"
#include "base/check.h"
#include "base/half.h"
#include "bench/encode_passes.h"
#include "formats/codec_table.h"
#include "quant/ranges.h"

namespace kvquant {
namespace {

NuqCodebook spread_codebook(int bits) {
  std::vector<float> levels;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) {
    const float x = 2 * static_cast<float>(i) / static_cast<float>(count - 1) - 1;
    levels.push_back(x * (0.7f + 0.3f * std::abs(x)));
  }
  return make_codebook(levels);
}

// One side: rows, their parameters, room for results.
struct Side {
  Side(const EncodeTimingShape& shape, const NuqCodebook& book, ScaleAxis axis)
      : row_size(shape.num_kv_heads * shape.head_dim),
        num_outliers(num_value_outliers(row_size, shape.outlier_percent)),
        rows(shape.num_tokens * row_size),
        codes(shape.num_tokens / kTileTokens * shape.num_kv_heads *
              code_tile_bytes(shape.bits, shape.head_dim)),
        outliers(shape.num_tokens / kTileTokens * row_size),
        scales(axis == ScaleAxis::kToken ? shape.num_tokens : row_size),
        zeros(scales.size()),
        low(row_size),
        high(row_size),
        marks(shape.num_tokens * row_size) {
    uint32_t state = 1;
    for (int64_t i = 0; i < rows.size(); ++i) {  // sums of two uniform numbers
      float sum = 0;
      for (int k = 0; k < 2; ++k) {
        state = state * 1664525u + 1013904223u;
        sum += static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
      }
      rows[i] = round_to_half(sum);
    }
    // |x| > 2 - sqrt(2 p) has the share p.
    const auto share = static_cast<float>(shape.outlier_percent / 100);
    const float threshold = round_to_half(2 - 2 * std::sqrt(share / 2));
    std::fill(scales.begin(), scales.end(), threshold);
    std::fill(high.begin(), high.end(), threshold);
    std::fill(low.begin(), low.end(), -threshold);
    chunk = {.codebook = &book,
             .rows = rows.data(),
             .scales = scales.data(),
             .zeros = zeros.data(),
             .axis = axis,
             .num_kv_heads = shape.num_kv_heads,
             .head_dim = shape.head_dim,
             .num_tokens = shape.num_tokens,
             .codes = codes.data(),
             .outliers = outliers.data()};
    if (axis == ScaleAxis::kToken || shape.outlier_percent == 0) return;
    chunk.low = low.data();
    chunk.high = high.data();
  }

  // Scales, zero points and outliers of values.
  void fit(ThreadPool& pool) {
    pool.parallel_for(chunk.num_tokens / 16, [&](int64_t task, int) {
      for (int64_t t = 16 * task; t < 16 * task + 16; ++t) {
        const std::span row(rows.data() + t * row_size, static_cast<size_t>(row_size));
        const RowRange range =
            fit_row(row, num_outliers, {marks.data() + t * row_size, row.size()});
        scales[t] = to_float(range.scale);
        zeros[t] = to_float(range.zero);
      }
    });
  }

  void encode(const RoundingFeedback* feedback, ThreadPool& pool, Backend backend) {
    pool.parallel_for(chunk.num_pieces(), [&](int64_t piece, int) {
      EncodeJob job = chunk.job(piece);
      job.feedback = feedback;
      encode_tile(job, backend);
    });
  }

  void clear() {
    std::fill(codes.data(), codes.data() + codes.size(), uint8_t{0});
    std::fill(outliers.begin(), outliers.end(), uint64_t{0});
  }

  int64_t row_size;
  int64_t num_outliers;
  Buffer<float> rows;
  Buffer<uint8_t> codes;
  std::vector<uint64_t> outliers;
  std::vector<float> scales, zeros, low, high;
  std::vector<uint8_t> marks;
  EncodeChunk chunk;
};

// Both sides, and feedback that all heads share.
class EncodeBench {
 public:
  EncodeBench(const EncodeTimingShape& shape, ThreadPool& pool)
      : shape_(shape),
        pool_(pool),
        book_(spread_codebook(shape.bits)),
        keys_(shape, book_, ScaleAxis::kChannel),
        values_(shape, book_, ScaleAxis::kToken),
        normalised_(keys_.rows.size()),
        byte_codes_(keys_.rows.size()),
        order_(shape.head_dim),
        coefficients_(shape.head_dim * shape.head_dim) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal(0, 0.3f / std::sqrt(static_cast<float>(shape.head_dim)));
    for (float& a : coefficients_) a = normal(rng);
    for (int64_t i = 0; i < shape.head_dim; ++i) order_[i] = static_cast<uint8_t>(i);
    std::shuffle(order_.begin(), order_.end(), rng);
    feedback_ = {order_.data(), coefficients_.data()};
    values_.fit(pool);
  }

  std::vector<EncodeTiming> run() {
    const auto passes = [&](Side& side) {
      return encode_in_passes(side.chunk, {normalised_.data(), byte_codes_.data()}, pool_);
    };
    check_result(keys_, &feedback_, [&] { keys_.encode(&feedback_, pool_, best_backend()); });
    check_result(values_, nullptr, [&] { values_.encode(nullptr, pool_, best_backend()); });
    add("keys with feedback", 1, [&] { keys_.encode(&feedback_, pool_, best_backend()); });
    add("values", 1, [&] { values_.encode(nullptr, pool_, best_backend()); });
    add("keys with feedback and values", 2, [&] {
      keys_.encode(&feedback_, pool_, best_backend());
      values_.encode(nullptr, pool_, best_backend());
    });
    add("the same and the values' ranges", 2, [&] {
      values_.fit(pool_);
      keys_.encode(&feedback_, pool_, best_backend());
      values_.encode(nullptr, pool_, best_backend());
    });
    add("keys and values, nearest levels", 2, [&] {
      keys_.encode(nullptr, pool_, best_backend());
      values_.encode(nullptr, pool_, best_backend());
    });
    if (passes(keys_)) {
      for (Side* side : {&keys_, &values_}) check_result(*side, nullptr, [&] { passes(*side); });
      add("the same in separate passes", 2, [&] {
        passes(keys_);
        passes(values_);
      });
    }
    shape_.num_runs = 1;  // slow
    add("keys with feedback, reference", 1,
        [&] { keys_.encode(&feedback_, pool_, Backend::kReference); });
    return timings_;
  }

 private:
  // Codes and outliers of all pieces against the reference's.
  template <class Fn>
  void check_result(Side& side, const RoundingFeedback* feedback, Fn&& fn) {
    side.clear();
    side.encode(feedback, pool_, Backend::kReference);
    const std::vector<uint8_t> codes(side.codes.data(), side.codes.data() + side.codes.size());
    const std::vector<uint64_t> outliers = side.outliers;
    side.clear();
    fn();
    if (!std::equal(codes.begin(), codes.end(), side.codes.data()) || outliers != side.outliers) {
      throw std::runtime_error("encode timing: the result differs from the reference");
    }
  }

  // Times fn over `num_sides` sides. Codes are added to those that are there: as fast, and of a
  // repeated run the same.
  template <class Fn>
  void add(const char* name, int num_sides, Fn&& fn) {
    std::vector<double> samples;
    for (int i = 0; i <= shape_.num_runs; ++i) {
      const auto start = std::chrono::steady_clock::now();
      fn();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      if (i > 0) samples.push_back(elapsed.count());
    }
    std::sort(samples.begin(), samples.end());
    EncodeTiming timing{.name = name};
    timing.num_values = static_cast<double>(num_sides * keys_.rows.size());
    timing.bytes = timing.num_values * sizeof(float);
    timing.time_s = samples[samples.size() / 2];
    timing.best_s = samples.front();
    timing.gvalues_per_s = timing.num_values / timing.time_s * 1e-9;
    timing.gb_per_s = timing.bytes / timing.time_s * 1e-9;
    timings_.push_back(timing);
  }

  EncodeTimingShape shape_;
  ThreadPool& pool_;
  NuqCodebook book_;
  Side keys_, values_;
  Buffer<float> normalised_;
  Buffer<uint8_t> byte_codes_;
  std::vector<uint8_t> order_;
  std::vector<float> coefficients_;
  RoundingFeedback feedback_;
  std::vector<EncodeTiming> timings_;
};

}  // namespace

std::vector<EncodeTiming> time_encode(const EncodeTimingShape& shape, ThreadPool& pool) {
  check_arg(shape.num_kv_heads > 0 && shape.num_tokens > 0 && shape.num_tokens % kTileTokens == 0,
            fmt::format("encode timing: {} KV heads, {} tokens: must be positive, tokens a "
                        "multiple of 64",
                        shape.num_kv_heads, shape.num_tokens));
  check_arg(
      shape.head_dim > 0 && shape.head_dim % 16 == 0 && shape.head_dim <= 256,
      fmt::format("encode timing: head_dim {} is not a multiple of 16 up to 256", shape.head_dim));
  check_arg(shape.bits >= kMinCodeBits && shape.bits <= kMaxCodeBits && shape.num_runs > 0,
            fmt::format("encode timing: {} bits, {} runs", shape.bits, shape.num_runs));
  return EncodeBench(shape, pool).run();
}

}  // namespace kvquant
