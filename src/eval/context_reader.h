// Reads contexts into a cache, one after the other, and each shared beginning of two neighbours
// once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/runner.h"

namespace kvquant {

// What the next context begins with is kept, at ends of whole chunks only: then every chunk of it
// is cut where it would be without sharing, and the bits are the same. `runner` must outlive
// it; sequences that it has kept stay there.
class ContextReader {
 public:
  ContextReader(Runner& runner, int64_t ubatch) : runner_(runner), ubatch_(ubatch) {}

  // Returns a sequence of `context` that the caller owns; an empty one of an empty context. `next`
  // is the context that comes after it, or empty; it must live until the call after the next one.
  // Throws what Runner::forward does.
  Runner::SequenceId read(std::span<const int32_t> context, std::span<const int32_t> next);

 private:
  struct Kept {
    int64_t length;  // tokens, a multiple of ubatch
    Runner::SequenceId id;
  };

  Runner& runner_;
  int64_t ubatch_;
  std::span<const int32_t> last_;
  std::vector<Kept> kept_;  // of last_, shortest first
};

}  // namespace kvquant
