// Counts the bytes that a cache holds for its sequences, and refuses to hold more than a limit.
// Blocks and rows that sequences share are counted once. Not thread-safe.
#pragma once

#include <fmt/format.h>

#include <cassert>
#include <cstdint>

#include "kvquant/error.h"

namespace kvquant {

class MemoryAccount {
 public:
  int64_t held_bytes() const { return held_; }
  int64_t max_bytes() const { return max_; }
  // 0: no limit. What is held already stays.
  void set_max_bytes(int64_t bytes) { max_ = bytes; }

  // Throws OutOfMemory naming the bytes asked for, held and allowed; then nothing is added.
  void add(int64_t bytes) {
    assert(bytes >= 0);
    if (max_ > 0 && bytes > max_ - held_) {
      throw OutOfMemory(
          fmt::format("cache: {} bytes more than the {} held would exceed the limit "
                      "of {} bytes",
                      bytes, held_, max_));
    }
    held_ += bytes;
  }
  void remove(int64_t bytes) noexcept {
    assert(0 <= bytes && bytes <= held_);
    held_ -= bytes;
  }

 private:
  int64_t held_ = 0;
  int64_t max_ = 0;
};

}  // namespace kvquant
