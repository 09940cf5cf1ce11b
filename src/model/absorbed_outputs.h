// Output projections that take values' latents: attention's late expansion (ops/latent.h), D per
// query head, multiplied into W_o once instead of being applied at every step.
//
//   W_o (exact + D latents) = W_o exact + W_o' latents,   W_o'[:, head] = W_o[:, head] D_head
//
// DeepSeek-V2 (arXiv 2405.04434) does so with its trained latents.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "base/threads.h"
#include "cache/kv_cache.h"
#include "formats/precision.h"
#include "kvquant/spec.h"
#include "ops/linear.h"

namespace kvquant {

// What becomes of sums of latents that values are stored as.
enum class ValueDecoders {
  kExpanded,  // by attention
  kAbsorbed,  // the layer's output projection takes them
};

// W_o' [hidden, num_q_heads * width] of W_o [hidden, num_q_heads * head_dim] and one map per KV
// head, zeros behind the rank. At Precision::kF32 it is f32; else 8-bit codes where W_o is codes
// and rows are a multiple of 32 long, or bf16. Throws std::invalid_argument when W_o's rows don't
// fit the maps, OutOfMemory.
PackedMatrix absorb_decoders(const PackedMatrix& output, std::span<const LatentMap> maps,
                             Precision precision, ThreadPool& pool);

// Those of a model, made when a cache first needs them and kept for later ones whose values have
// the same bases, as caches come and go.
class AbsorbedOutputs {
 public:
  struct Layer {
    int64_t model, cache;  // indices
    const PackedMatrix& output;
    Precision precision;
  };

  // Null where the cache's values of the layer are no latents. Valid until the next call.
  const PackedMatrix* find_or_make(const Layer& layer, const KvCache& cache, ThreadPool& pool);

  int64_t num_bytes() const;

 private:
  struct Entry {
    int64_t layer, cache_layer;
    std::vector<TransformStep> transforms;  // these and the bits of wf say what the bases are
    double waterfill_bits;
    std::weak_ptr<const Calibration> calibration;  // that the bases are from; empty: none
    PackedMatrix matrix;
  };
  std::list<Entry> entries_;
};

}  // namespace kvquant
