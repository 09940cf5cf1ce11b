// Parts of a query's result, merged in their order: the second pass, the same to the bit each time.
// Sums of latents are expanded here, once for each row, or handed out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "formats/kv_block.h"
#include "ops/attend_cuda.h"
#include "ops/attend_cuda_task.h"
#include "ops/cuda_fragments.h"

namespace kvquant {

// Of a row's latents.
inline constexpr int64_t kMergeSharedBytes = kMaxNuqHeadDim * static_cast<int64_t>(sizeof(float));

struct MergedSum {
  SoftmaxState state{};
  float sum = 0;
};

// Of one channel of a row, parts [begin, end).
KVQUANT_DEVICE MergedSum merge_parts(const CudaAttend& call, int64_t first_index, int64_t num_rows,
                                     TileRange parts, int64_t channel) {
  MergedSum out;
  for (int64_t part = parts.begin; part < parts.end; ++part) {
    const int64_t index = first_index + part * num_rows;
    const MergeFactors factors = merge(out.state, call.partial_states[index]);
    out.sum =
        out.sum * factors.keep + call.partial_sums[index * call.head_dim + channel] * factors.add;
  }
  return out;
}

// A row whose parts are all sums of values; keys may be latents.
KVQUANT_DEVICE void merge_row(const CudaAttend& call, const AttendMerge& merged, int64_t row,
                              float* out, int thread) {
  const int64_t num_rows = merged.num_queries * call.group;
  const int64_t first = merged.first_partial_row + row;
  for (int64_t channel = thread; channel < call.head_dim; channel += kBlockThreads) {
    const MergedSum all = merge_parts(call, first, num_rows, {0, merged.num_parts}, channel);
    out[channel] = all.sum * normaliser(all.state);
  }
  const CudaJob& job = call.jobs[merged.job];
  float* sums = latent_sums_of(job, merged.first_query, row, call.group);
  for (int64_t i = thread; i < job.latent_width; i += kBlockThreads) sums[i] = 0;
}

// A row whose last parts are sums of latents, which all its channels need.
template <class Block>
KVQUANT_DEVICE void merge_latent_row(const Block& block, const CudaAttend& call,
                                     const AttendMerge& merged, int64_t row, float* out) {
  const CudaJob& job = call.jobs[merged.job];
  const int64_t num_rows = merged.num_queries * call.group;
  const int64_t first = merged.first_partial_row + row;
  const TileRange plain{0, merged.num_parts - merged.num_latent_parts};
  const TileRange coded{plain.end, merged.num_parts};
  auto* latents = reinterpret_cast<float*>(block.shared());
  block.phase([&](int thread) {
    for (int64_t i = thread; i < job.latents.width; i += kBlockThreads) {
      latents[i] = merge_parts(call, first, num_rows, coded, i).sum;
    }
  });
  block.phase([&](int thread) {
    const SoftmaxState other = merge_parts(call, first, num_rows, coded, 0).state;
    for (int64_t channel = thread; channel < call.head_dim; channel += kBlockThreads) {
      MergedSum own = merge_parts(call, first, num_rows, plain, channel);
      const MergeFactors factors = merge(own.state, other);
      float sum = other.sum * job.latents.mean[channel];
      for (int64_t r = 0; r < job.latents.rank && job.latent_width == 0; ++r) {
        sum = std::fma(latents[r], job.latents.decode[r * call.head_dim + channel], sum);
      }
      out[channel] = (own.sum * factors.keep + factors.add * sum) * normaliser(own.state);
    }
    if (job.latent_width == 0) return;
    SoftmaxState state = merge_parts(call, first, num_rows, plain, 0).state;
    const float factor = merge(state, other).add;
    float* sums = latent_sums_of(job, merged.first_query, row, call.group);
    for (int64_t i = thread; i < job.latent_width; i += kBlockThreads) {
      sums[i] = latents[i] * factor * normaliser(state);
    }
  });
}

// Merge block.index() of the call, a channel a thread.
template <class Block>
KVQUANT_DEVICE void merge_task(const Block& block, const CudaAttend& call) {
  const AttendMerge& merged = call.merges[block.index()];
  const CudaJob& job = call.jobs[merged.job];
  const auto out_row = [&](int64_t row) {
    return job.out + (merged.first_query + row / call.group) * job.out_stride +
           row % call.group * call.head_dim;
  };
  const int64_t num_rows = merged.num_queries * call.group;
  if (merged.num_latent_parts > 0 && job.latents.width > 0) {
    for (int64_t row = 0; row < num_rows; ++row) {
      merge_latent_row(block, call, merged, row, out_row(row));
    }
    return;
  }
  block.phase([&](int thread) {
    for (int64_t row = 0; row < num_rows; ++row) merge_row(call, merged, row, out_row(row), thread);
  });
}

}  // namespace kvquant
