// An array that grows at its end without moving what it holds: segment s has 16 << s elements, so
// growing allocates at most as much as there is, copies nothing, and an element is found by the
// bits of its index. std::vector copies; std::deque's table of chunks, too.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "kvquant/error.h"

namespace kvquant {

template <class T>
class SegmentedArray {
 public:
  int64_t size() const { return size_; }
  int64_t num_bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }  // allocated

  T& operator[](int64_t i) { return segments_[segment_of(i)][place_in_segment(i)]; }
  const T& operator[](int64_t i) const { return segments_[segment_of(i)][place_in_segment(i)]; }
  T& back() { return (*this)[size_ - 1]; }

  // Throws OutOfMemory; then nothing changed.
  void push_back(T element) {
    if (size_ == capacity_) grow();
    (*this)[size_] = std::move(element);
    ++size_;
  }

 private:
  static constexpr uint64_t kFirst = 16;
  static constexpr size_t kNumSegments = 32;

  static size_t segment_of(int64_t i) {
    return static_cast<size_t>(std::bit_width(static_cast<uint64_t>(i) / kFirst + 1)) - 1;
  }
  static uint64_t place_in_segment(int64_t i) {
    return static_cast<uint64_t>(i) - kFirst * ((uint64_t{1} << segment_of(i)) - 1);
  }

  void grow() {
    const size_t segment = segment_of(size_);
    if (segment >= kNumSegments) throw OutOfMemory("out of memory: an array has no more segments");
    const uint64_t count = kFirst << segment;
    try {
      segments_[segment] = std::make_unique<T[]>(count);
    } catch (const std::bad_alloc&) {
      throw OutOfMemory("out of memory: " + std::to_string(count * sizeof(T)) +
                        " bytes were asked for");
    }
    capacity_ += static_cast<int64_t>(count);
  }

  std::array<std::unique_ptr<T[]>, kNumSegments> segments_;
  int64_t size_ = 0, capacity_ = 0;
};

}  // namespace kvquant
