// The kernels of cuda_store.h that find ranges and codes: a row or a tile a block.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_numbers.h"
#include "ops/cuda_rows_kernels.h"
#include "ops/cuda_store.h"
#include "ops/encode_cuda_tile.h"

namespace kvquant {

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaHadamard& call) {
  const int64_t width = call.num_heads * call.head_dim;
  float* row = call.rows + block.index() * width;
  for (int64_t span = 1; span < call.head_dim; span *= 2) {
    block.phase([&](int thread) {
      for (int64_t i = thread; i < width; i += kBlockThreads) {
        if ((i & span) != 0) continue;  // its partner's thread does both
        const float a = row[i], b = row[i + span];
        row[i] = a + b;
        row[i + span] = a - b;
      }
    });
  }
  block.phase([&](int thread) {
    for (int64_t i = thread; i < width; i += kBlockThreads) row[i] *= call.norm;
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaOutside& call) {
  auto* counts = reinterpret_cast<int32_t*>(block.shared());
  const Half* row = call.rows + block.index() * call.width;
  block.phase([&](int thread) {
    int32_t count = 0;
    for (int64_t c = thread; c < call.width; c += kBlockThreads) {
      const float x = widen(row[c]), scale = widen(call.scales[c]), zero = widen(call.zeros[c]);
      count += x < zero - scale || x > zero + scale ? 1 : 0;
    }
    counts[thread] = count;
  });
  block.phase([&](int thread) {
    if (thread != 0) return;
    int32_t sum = 0;
    for (int i = 0; i < kBlockThreads; ++i) sum += counts[i];
    call.counts[block.index()] = sum;
  });
}

// The best of each thread's values of a row, and where it is; -1: there is none.
struct FitShared {
  float* values;
  int32_t* places;
};

// One thread's first by (sign * value descending, index ascending) among those not marked.
KVQUANT_DEVICE void find_first(const CudaFit& call, const float* row, const uint8_t* marks,
                               float sign, const FitShared& shared, int thread) {
  float best = 0;
  int32_t place = -1;
  for (int64_t i = thread; i < call.width; i += kBlockThreads) {
    if (marks != nullptr && marks[i] != 0) continue;
    const auto index = static_cast<int32_t>(i);
    if (!comes_first(sign * row[i], index, best, place)) continue;
    best = sign * row[i];
    place = index;
  }
  shared.values[thread] = best;
  shared.places[thread] = place;
}

// The first of all threads.
KVQUANT_DEVICE int first_thread(const FitShared& shared) {
  int best = 0;
  for (int i = 1; i < kBlockThreads; ++i) {
    const bool is_there = shared.places[i] >= 0;
    if (is_there &&
        comes_first(shared.values[i], shared.places[i], shared.values[best], shared.places[best])) {
      best = i;
    }
  }
  return best;
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaFit& call) {
  auto* values = reinterpret_cast<float*>(block.shared());
  const FitShared shared{values, reinterpret_cast<int32_t*>(values + kBlockThreads)};
  const int64_t index = block.index();
  const float* row = call.targets[index].row;
  uint8_t* marks = call.targets[index].marks;
  block.phase([&](int thread) {
    for (int64_t i = thread; marks != nullptr && i < call.mark_width; i += kBlockThreads) {
      marks[i] = 0;
    }
  });
  for (int64_t i = 0; i < 2 * call.num_outliers; ++i) {
    const float sign = i < call.num_outliers ? 1.0f : -1.0f;
    block.phase([&](int thread) { find_first(call, row, marks, sign, shared, thread); });
    block.phase([&](int thread) {
      if (thread == 0) marks[shared.places[first_thread(shared)]] = 1;
    });
  }
  float* high = call.scales + index;  // until the last phase
  block.phase([&](int thread) { find_first(call, row, marks, 1.0f, shared, thread); });
  block.phase([&](int thread) {
    if (thread == 0) *high = shared.values[first_thread(shared)];
  });
  block.phase([&](int thread) { find_first(call, row, marks, -1.0f, shared, thread); });
  block.phase([&](int thread) {
    if (thread != 0) return;
    const float most = *high, least = -shared.values[first_thread(shared)];
    // Adding 0 makes -0 a 0, as on the CPU.
    const Half scale = to_half(0.5f * (most - least) + 0.0f);
    const Half zero = to_half(0.5f * (least + most) + 0.0f);
    *call.targets[index].scale = scale;
    *call.targets[index].zero = zero;
    call.scales[index] = widen(scale);
    call.zeros[index] = widen(zero);
  });
}

// A channel's outliers among the tokens of a job, by marks.
KVQUANT_DEVICE uint64_t collect_marks(const CudaEncodeJob& job, int64_t channel) {
  uint64_t mask = 0;
  for (int64_t token = 0; token < job.encode.num_tokens; ++token) {
    const uint64_t bit = job.marks[token * job.mark_stride + channel];
    mask |= bit << (job.encode.first_token + token);
  }
  return mask;
}

KVQUANT_DEVICE int count_bits(uint64_t mask) {
  int count = 0;
  for (; mask != 0; mask &= mask - 1) ++count;
  return count;
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaEncode& call) {
  const CudaEncodeJob& job = call.jobs[block.index()];
  const EncodeJob& encode = job.encode;
  const EncodeShared shared = slice_encode_shared(block.shared(), encode);
  const bool has_masks = encode.outliers != nullptr;
  block.phase([&](int thread) {
    load_rows(encode, shared, thread);
    for (int64_t c = thread; job.marks != nullptr && c < encode.head_dim; c += kBlockThreads) {
      encode.outliers[c] = collect_marks(job, c);
    }
  });
  block.phase([&](int thread) {
    encode.feedback != nullptr ? encode_with_feedback(encode, shared, thread)
                               : encode_values(encode, shared, thread);
    if (encode.low != nullptr) store_marks(encode, shared, thread);
  });
  block.phase([&](int thread) {
    for (int64_t c = thread; has_masks && c < encode.head_dim; c += kBlockThreads) {
      for (int token = 0; token < kTileTokens; ++token) {
        if ((encode.outliers[c] >> token & 1) != 0) shared.codes[c * kTileTokens + token] = 0;
      }
    }
  });
  block.phase([&](int thread) {
    store_codes(encode, shared, thread);
    if (thread != 0 || !has_masks) return;
    int32_t count = 0;
    for (int64_t c = 0; c < encode.head_dim; ++c) count += count_bits(encode.outliers[c]);
    *job.num_outliers = count;
  });
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaOutliers& call) {
  const CudaOutlierJob& job = call.jobs[block.index()];
  auto* counts = reinterpret_cast<int32_t*>(block.shared());  // of the job's tokens
  const auto is_out = [&](int64_t token, int64_t channel) {
    return (job.masks[channel] >> (job.first_token + token) & 1) != 0;
  };
  block.phase([&](int thread) {
    for (int64_t token = thread; token < job.num_tokens; token += kBlockThreads) {
      int32_t count = 0;
      for (int64_t c = 0; c < job.head_dim; ++c) count += is_out(token, c) ? 1 : 0;
      counts[token] = count;
    }
  });
  block.phase([&](int thread) {
    const int64_t page = job.first_entry / kOutliersPerPage;
    for (int64_t token = thread; token < job.num_tokens; token += kBlockThreads) {
      int64_t entry = job.first_entry;
      for (int64_t i = 0; i < token; ++i) entry += counts[i];
      for (int64_t c = 0; c < job.head_dim; ++c) {
        if (!is_out(token, c)) continue;
        OutlierEntry& to =
            job.pages[entry / kOutliersPerPage - page]->entries[entry % kOutliersPerPage];
        to = {outlier_place(job.first_token + token, c),
              to_half(job.rows[token * job.row_stride + c])};
        ++entry;
      }
    }
    if (thread != 0) return;
    int32_t total = 0;
    for (int64_t i = 0; i < job.num_tokens; ++i) total += counts[i];
    if (job.first_token == 0) *job.start = static_cast<uint32_t>(job.first_entry);
    *job.count = static_cast<uint16_t>(*job.count + total);
  });
}

}  // namespace kvquant
