// Whether a chunk's keys or values can be stored: hostile or broken activations are refused before
// anything of the chunk is.
#pragma once

#include <cstdint>

#include "base/threads.h"
#include "cache/layer_store.h"
#include "kvquant/tensor_view.h"

namespace kvquant {

// How messages call the numbers.
struct ChunkName {
  int64_t layer = 0;
  const char* side = "";  // "key", "value"
};

// x [num_tokens, num_kv_heads, head_dim]. Throws FormatError that names the first number that is
// not finite or larger than the side can store.
void check_values(TensorView<const float, 3> x, const SidePlan& plan, const ChunkName& name,
                  ThreadPool& pool);

}  // namespace kvquant
