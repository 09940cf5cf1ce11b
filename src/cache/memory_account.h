// Counts the bytes that a cache holds for its sequences, and refuses to hold more than a limit.
// Blocks and rows that sequences share are counted once. Not thread-safe.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstdint>

#include "kvquant/error.h"

namespace kvquant {

class MemoryAccount {
 public:
  int64_t held_bytes() const { return held_; }
  // The most that was held at a time, since reset_peak if it was called.
  int64_t peak_bytes() const { return peak_; }
  void reset_peak() { peak_ = held_; }
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
    peak_ = std::max(peak_, held_);
  }
  void remove(int64_t bytes) noexcept {
    assert(0 <= bytes && bytes <= held_);
    held_ -= bytes;
  }

 private:
  int64_t held_ = 0;
  int64_t peak_ = 0;
  int64_t max_ = 0;
};

}  // namespace kvquant
