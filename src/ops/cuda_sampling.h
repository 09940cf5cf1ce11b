// What sampling needs of logits on a device, so that they need not travel: the parameters of
// kernels and their bodies. All pointers are addresses of the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/device_code.h"
#include "ops/cuda_fragments.h"
#include "ops/cuda_rows_kernels.h"

namespace kvquant {

// Logits of some tokens, each named once, by a repetition penalty (arXiv 1909.05858).
struct CudaPenalise {
  float* logits = nullptr;
  const int32_t* ids = nullptr;  // [num_ids]
  int64_t num_ids = 0;
  float penalty = 1;

  int64_t num_blocks() const { return num_ids > 0 ? 1 : 0; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaPenalise&) const = default;
};

// The `count` largest numbers of each segment, in order, ties to the lower id; ids of -1 stand for
// none. With the results of all segments as x and ids: the largest of all.
struct CudaBest {
  const float* x = nullptr;      // [width]
  const int32_t* ids = nullptr;  // [width]; null: their places
  int64_t width = 0;
  int64_t segment = 0;
  int64_t count = 0;
  float* values = nullptr;   // [num_blocks(), count]
  int32_t* found = nullptr;  // [num_blocks(), count]

  int64_t num_blocks() const { return (width + segment - 1) / segment; }
  int64_t shared_bytes() const { return 2 * kBlockThreads * 8; }
  bool operator==(const CudaBest&) const = default;
};

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaPenalise& call) {
  block.phase([&](int thread) {
    for (int64_t i = thread; i < call.num_ids; i += kBlockThreads) {
      float& logit = call.logits[call.ids[i]];
      logit = logit > 0 ? logit / call.penalty : logit * call.penalty;
    }
  });
}

// The best of a thread's numbers that come behind the last one taken (id -1: of all).
struct BestNumber {
  float value;
  int32_t id;
};

KVQUANT_DEVICE BestNumber find_best(const CudaBest& call, int64_t first, const BestNumber& last,
                                    int thread) {
  BestNumber best{0, -1};
  const int64_t end = first + call.segment < call.width ? first + call.segment : call.width;
  for (int64_t i = first + thread; i < end; i += kBlockThreads) {
    const int32_t id = call.ids != nullptr ? call.ids[i] : static_cast<int32_t>(i);
    if (id < 0) continue;
    const float x = call.x[i];
    const bool is_taken = last.id >= 0 && !comes_first(last.value, last.id, x, id);
    if (!is_taken && comes_first(x, id, best.value, best.id)) best = {x, id};
  }
  return best;
}

template <class Block>
KVQUANT_DEVICE void run_call(const Block& block, const CudaBest& call) {
  constexpr int kGroup = 16;  // threads whose best one thread looks through
  auto* own = reinterpret_cast<BestNumber*>(block.shared());  // [kBlockThreads]
  BestNumber* of_groups = own + kBlockThreads;
  const int64_t first = block.index() * call.segment;
  float* values = call.values + block.index() * call.count;
  int32_t* found = call.found + block.index() * call.count;
  const auto best_of = [](const BestNumber* x, int size) {
    BestNumber best{0, -1};
    for (int i = 0; i < size; ++i) {
      if (x[i].id >= 0 && comes_first(x[i].value, x[i].id, best.value, best.id)) best = x[i];
    }
    return best;
  };
  for (int64_t i = 0; i < call.count; ++i) {
    block.phase([&](int thread) {
      const BestNumber last{i > 0 ? values[i - 1] : 0.0f, i > 0 ? found[i - 1] : -1};
      const bool has_none_left = i > 0 && (last.id < 0 || own[thread].id < 0);
      // All but the thread whose number was taken keep theirs.
      if (i > 0 && !has_none_left && own[thread].id != last.id) return;
      own[thread] = has_none_left ? BestNumber{0, -1} : find_best(call, first, last, thread);
    });
    block.phase([&](int thread) {
      if (thread < kBlockThreads / kGroup) {
        of_groups[thread] = best_of(own + thread * kGroup, kGroup);
      }
    });
    block.phase([&](int thread) {
      if (thread != 0) return;
      const BestNumber best = best_of(of_groups, kBlockThreads / kGroup);
      values[i] = best.value;
      found[i] = best.id;
    });
  }
}

}  // namespace kvquant
