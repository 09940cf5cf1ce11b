// Parts of a query's result, merged in their order: the second pass, the same to the bit each time.
#pragma once

#include <cstdint>

#include "base/device_code.h"
#include "ops/attend_cuda.h"
#include "ops/cuda_fragments.h"

namespace kvquant {

// Merge block.index() of the call, a channel a thread.
template <class Block>
KVQUANT_DEVICE void merge_task(const Block& block, const CudaAttend& call) {
  const AttendMerge& merged = call.merges[block.index()];
  const CudaJob& job = call.jobs[merged.job];
  const int64_t num_rows = merged.num_queries * call.group;
  block.phase([&](int thread) {
    for (int64_t row = 0; row < num_rows; ++row) {
      float* out = job.out + (merged.first_query + row / call.group) * job.out_stride +
                   row % call.group * call.head_dim;
      for (int64_t channel = thread; channel < call.head_dim; channel += kBlockThreads) {
        SoftmaxState state;
        float sum = 0;
        for (int64_t part = 0; part < merged.num_parts; ++part) {
          const int64_t index = merged.first_partial_row + part * num_rows + row;
          const MergeFactors factors = merge(state, call.partial_states[index]);
          sum =
              sum * factors.keep + call.partial_sums[index * call.head_dim + channel] * factors.add;
        }
        out[channel] = sum * normaliser(state);
      }
    }
  });
}

}  // namespace kvquant
