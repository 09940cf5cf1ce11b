// What tasks of both kinds of arithmetic do alike: queries into shared memory, softmax, results.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "base/device_code.h"
#include "ops/attend_cuda_values.h"

namespace kvquant {

// A task as its block sees it, the same for all threads.
struct TaskView {
  const CudaAttend* call;
  const AttendTask* task;
  const CudaJob* job;
  int64_t num_rows;

  // [head_dim]
  KVQUANT_DEVICE const float* query(int64_t row) const {
    return job->query + (task->first_query + row / call->group) * job->query_stride +
           row % call->group * call->head_dim;
  }
  // Weighted sums are of this many channels.
  KVQUANT_DEVICE int64_t value_dim() const {
    const bool has_latents = task->values == ValueKind::kLatents && job->latents.width > 0;
    return has_latents ? job->latents.width : call->head_dim;
  }
  // Where weighted sums of a row go, [value_dim()].
  KVQUANT_DEVICE float* sums(int64_t row) const {
    if (task->partial_row >= 0) {
      return call->partial_sums + (task->partial_row + row) * call->head_dim;
    }
    return job->out + (task->first_query + row / call->group) * job->out_stride +
           row % call->group * call->head_dim;
  }
};

KVQUANT_DEVICE TaskView view_task(const CudaAttend& call, int64_t index) {
  const AttendTask* task = call.tasks + index;
  return {&call, task, call.jobs + task->job, task->num_queries * call.group};
}

template <class Pair>
KVQUANT_DEVICE AttendShared<Pair> task_shared(std::byte* base, const TaskView& view,
                                              int64_t num_rows, bool has_sums) {
  auto shared = slice_shared<Pair>(base, view.call->head_dim, num_rows, has_sums);
  shared.value_dim = view.value_dim();
  shared.staged_values = shared.staged_keys + view.call->staged_key_bytes;
  return shared;
}

// Whatever a block may read before it is written.
template <class Pair>
KVQUANT_DEVICE void clear_shared(const AttendShared<Pair>& shared, int64_t num_rows, int thread) {
  const AttendSharedLayout& layout = shared.layout;
  for (int64_t i = thread; i < layout.num_pairs * layout.key_stride; i += kBlockThreads) {
    shared.keys[i] = {};
  }
  for (int64_t i = thread; i < num_rows * layout.query_stride; i += kBlockThreads) {
    shared.query[i] = {};
    if (shared.query_rest != nullptr) shared.query_rest[i] = {};
  }
  for (int64_t i = thread; i < num_rows * layout.weight_stride; i += kBlockThreads) {
    shared.weights[i] = {};
  }
  for (int64_t row = thread; row < num_rows; row += kBlockThreads) {
    shared.factors[row] = 1;
    shared.max[row] = -std::numeric_limits<float>::infinity();
    shared.sum[row] = 0;
  }
}

// Channels c and c + 1 of a row. c is even.
template <class Pair>
KVQUANT_DEVICE void store_query(const AttendShared<Pair>& shared, int64_t row, int64_t c,
                                const float (&x)[2]) {
  const int64_t at = row * shared.layout.query_stride + c / 2;
  set_pair(shared.query[at], x[0], x[1]);
  if (shared.query_rest == nullptr) return;
  const FloatPair stored = widen(shared.query[at]);
  set_pair(shared.query_rest[at], x[0] - stored.first, x[1] - stored.second);
}

// Queries as a tile's keys need them: as they are, or turned back by the angle of its middle.
template <class Pair>
KVQUANT_DEVICE void load_queries(const TaskView& view, const CudaTile& tile,
                                 const AttendShared<Pair>& shared, int thread) {
  const int64_t half = shared.head_dim / 2, quarter = half / 2;
  const int64_t middle = (tile.index * kTileTokens + RopeTiles::kMiddle) * half;
  for (int64_t i = thread; i < view.num_rows * quarter; i += kBlockThreads) {
    const int64_t row = i / quarter, c = i % quarter * 2;
    const float* query = view.query(row);
    float a[2] = {query[c], query[c + 1]}, b[2] = {query[c + half], query[c + half + 1]};
    if (tile.run->is_turned()) {
      for (int k = 0; k < 2; ++k) {
        const float cos = tile.run->cos[middle + c + k], sin = tile.run->sin[middle + c + k];
        const float turned = std::fma(a[k], cos, b[k] * sin);
        b[k] = std::fma(b[k], cos, -(a[k] * sin));
        a[k] = turned;
      }
    }
    store_query(shared, row, c, a);
    store_query(shared, row, c + half, b);
  }
}

// CodedSide::logit_bias, in units of log2, one row a thread.
template <class Pair>
KVQUANT_DEVICE void find_row_biases(const TaskView& view, const CudaTile& tile,
                                    const AttendShared<Pair>& shared, int thread) {
  const CudaSide& keys = tile.run->keys;
  const int64_t half = shared.head_dim / 2;
  for (int64_t row = thread; row < view.num_rows; row += kBlockThreads) {
    const float* query = view.query(row);
    float sum = 0;
    for (int64_t c = 0; c < half && keys.logit_bias != 0; ++c) {
      const float a = widen(tile.keys.scales[c]), b = widen(tile.keys.scales[c + half]);
      sum += (query[c] * query[c] + query[c + half] * query[c + half]) * (a * a + b * b);
    }
    const float scale = view.call->log2_scale;
    shared.biases[row] =
        keys.logit_bias * 0.25f * tile.keys.codebook->noise * scale * scale / kLog2E * sum;
  }
}

// Weights of the tile's tokens for the rows of one warp, and their states: from those of `turn` to
// the other ones.
template <class Warp, class Pair>
KVQUANT_DEVICE void find_weights(const Warp& warp, const TaskView& view, const CudaTile& tile,
                                 const AttendShared<Pair>& shared, int64_t room, int turn) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const bool is_biased = tile.run->keys.source == TileSource::kCoded;
  for (int64_t row = warp.index(); row < view.num_rows; row += kBlockWarps) {
    const int64_t query = row / view.call->group;
    const int64_t begin = tile.tokens.first + query, end = tile.tokens.end + query;
    const float bias = is_biased ? shared.biases[row] : 0.0f;
    const float old = shared.max[turn * room + row];
    typename Warp::template Lanes<FloatPair> score;
    typename Warp::template Lanes<float> largest, total;
    warp.each([&](int lane) {
      const float* scores = shared.scores + row * shared.layout.score_stride + 2 * lane;
      const auto see = [&](int64_t token, float x) {
        const bool is_seen = begin <= token && token < end && token < tile.tokens.num_tokens;
        return is_seen ? std::fma(x, view.call->log2_scale, bias) : kNever;
      };
      score[lane] = {see(2 * lane, scores[0]), see(2 * lane + 1, scores[1])};
      largest[lane] = std::fmax(score[lane].first, score[lane].second);
    });
    const float max = std::fmax(old, warp.max(largest));
    const bool is_empty = max == kNever;
    warp.each([&](int lane) {
      const float first = is_empty ? 0.0f : std::exp2(score[lane].first - max);
      const float second = is_empty ? 0.0f : std::exp2(score[lane].second - max);
      Pair& weights = shared.weights[row * shared.layout.weight_stride + lane];
      set_pair(weights, first, second);
      const FloatPair rounded = widen(weights);  // so that weights, as they are, add up to 1
      total[lane] = rounded.first + rounded.second;
    });
    const float factor = is_empty ? 1.0f : std::exp2(old - max), added = warp.sum(total);
    warp.each([&](int lane) {
      if (lane != 0) return;
      shared.factors[row] = factor;
      shared.max[(1 - turn) * room + row] = max;
      shared.sum[(1 - turn) * room + row] = shared.sum[turn * room + row] * factor + added;
    });
  }
}

// What sums of a row are multiplied by when they are handed out: 1, unless they are final.
template <class Pair>
KVQUANT_DEVICE float final_factor(const TaskView& view, const AttendShared<Pair>& shared,
                                  int64_t room, int64_t row, int turn) {
  if (view.task->partial_row >= 0) return 1;
  return normaliser({shared.max[turn * room + row], shared.sum[turn * room + row]});
}

// Of a task that is all its queries see: they see no latents.
KVQUANT_DEVICE void clear_latent_sums(const TaskView& view, int thread) {
  if (view.task->partial_row >= 0) return;
  const CudaJob& job = *view.job;
  for (int64_t row = 0; row < view.num_rows; ++row) {
    float* sums = latent_sums_of(job, view.task->first_query, row, view.call->group);
    for (int64_t i = thread; i < job.latent_width; i += kBlockThreads) sums[i] = 0;
  }
}

template <class Pair>
KVQUANT_DEVICE void store_states(const TaskView& view, const AttendShared<Pair>& shared,
                                 int64_t room, int turn, int thread) {
  if (view.task->partial_row < 0) return;
  for (int64_t row = thread; row < view.num_rows; row += kBlockThreads) {
    view.call->partial_states[view.task->partial_row + row] = {shared.max[turn * room + row],
                                                               shared.sum[turn * room + row]};
  }
}

}  // namespace kvquant
