// Reads contexts into a cache, one after the other, and each shared beginning of two neighbours
// once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "model/transformer.h"

namespace kvquant {

// What the next context begins with is kept, at ends of whole chunks only: then every chunk of it
// is cut where it would be without sharing, and the bits are the same. `transformer` and `cache`
// must outlive it; sequences that it has kept stay in the cache.
class ContextReader {
 public:
  ContextReader(Transformer& transformer, KvCache& cache, int64_t ubatch)
      : transformer_(transformer), cache_(cache), ubatch_(ubatch) {}

  // Returns a sequence of `context` that the caller owns; an empty one of an empty context. `next`
  // is the context that comes after it, or empty; it must live until the call after the next one.
  // Throws what Transformer::forward does.
  KvCache::SequenceId read(std::span<const int32_t> context, std::span<const int32_t> next);

 private:
  struct Kept {
    int64_t length;  // tokens, a multiple of ubatch
    KvCache::SequenceId id;
  };

  Transformer& transformer_;
  KvCache& cache_;
  int64_t ubatch_;
  std::span<const int32_t> last_;
  std::vector<Kept> kept_;  // of last_, shortest first
};

}  // namespace kvquant
