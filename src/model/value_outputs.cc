#include "model/value_outputs.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/attend.h"

namespace kvquant {
namespace {

// Means of channels, [num_kv_heads, head_dim].
std::vector<double> value_means(const LayerActivations& a, ThreadPool& pool) {
  const int64_t dim = a.head_dim();
  std::vector<double> means(static_cast<size_t>(a.num_kv_heads() * dim));
  pool.parallel_for(a.num_kv_heads(), [&](int64_t head, int) {
    double* mean = means.data() + head * dim;
    int64_t count = 0;
    for (int64_t row = 0; row < a.num_tokens(); ++row) {
      if (row % a.seq_len < kCalibrationSinks) continue;
      ++count;
      for (int64_t c = 0; c < dim; ++c) mean[c] += a.values(row, head, c);
    }
    for (int64_t c = 0; c < dim && count > 0; ++c) mean[c] /= static_cast<double>(count);
  });
  return means;
}

// The keys and values of one sample and KV head as f32 tiles.
class SampleTiles {
 public:
  void fill(const LayerActivations& a, int64_t sample, int64_t head, const double* mean) {
    const int64_t dim = a.head_dim(), tile_size = kTileTokens * dim;
    const int64_t num_tiles = (a.seq_len + kTileTokens - 1) / kTileTokens;
    if (memory_.size() < 2 * num_tiles * tile_size) {
      memory_ = Buffer<float>(2 * num_tiles * tile_size);
    }
    keys_.clear();
    values_.clear();
    for (int64_t i = 0; i < num_tiles; ++i) {
      keys_.push_back(memory_.data() + 2 * i * tile_size);
      values_.push_back(memory_.data() + (2 * i + 1) * tile_size);
    }
    for (int64_t t = 0; t < a.seq_len; ++t) {
      const int64_t row = sample * a.seq_len + t, tile = t / kTileTokens, at = t % kTileTokens;
      float* key = memory_.data() + 2 * tile * tile_size;
      float* value = key + tile_size;
      for (int64_t c = 0; c < dim; ++c) {
        key[key_index(at, c)] = a.rotated_keys(row, head, c);
        const double centred = t < kCalibrationSinks ? 0 : a.values(row, head, c) - mean[c];
        value[value_index(at, c, dim)] = static_cast<float>(centred);
      }
    }
  }
  AttendRun run(int64_t num_tokens, int64_t sliding_window) const {
    AttendRun run;
    run.type = DenseType::kF32;
    run.key_tiles = keys_;
    run.value_tiles = values_;
    run.num_tokens = num_tokens;
    if (sliding_window > 0) run.max_lag = sliding_window;
    return run;
  }

 private:
  Buffer<float> memory_;  // zeros behind the sample
  std::vector<const void*> keys_, values_;
};

}  // namespace

void attend_centred_values(const LayerActivations& activations, const ValueOutputOptions& options,
                           ThreadPool& pool, Buffer<float>& out) {
  const LayerActivations& a = activations;
  const int64_t dim = a.head_dim(), num_heads = a.num_kv_heads();
  const int64_t group = a.num_q_heads() / num_heads, width = a.num_q_heads() * dim;
  const std::vector<double> means = value_means(a, pool);
  out.reserve_discarding(a.num_tokens() * width);
  std::vector<SampleTiles> tiles(static_cast<size_t>(num_heads));
  for (int64_t sample = 0; sample < a.num_samples; ++sample) {
    pool.parallel_for(num_heads, [&](int64_t head, int) {
      tiles[static_cast<size_t>(head)].fill(a, sample, head, means.data() + head * dim);
    });
    std::vector<AttendRun> runs;
    std::vector<AttendJob> jobs;
    for (const SampleTiles& of_head : tiles) {
      runs.push_back(of_head.run(a.seq_len, options.sliding_window));
    }
    for (int64_t head = 0; head < num_heads; ++head) {
      const int64_t first = sample * a.seq_len * width + head * group * dim;
      jobs.push_back({.query = &a.rotated_queries(sample * a.seq_len, head * group, 0),
                      .out = out.data() + first,
                      .query_stride = width,
                      .num_queries = a.seq_len,
                      .first_position = 0,
                      .runs = {&runs[static_cast<size_t>(head)], 1}});
    }
    attend({dim, group, options.scale}, jobs, options.precision, pool);
  }
}

}  // namespace kvquant
