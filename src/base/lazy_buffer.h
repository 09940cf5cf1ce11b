// LazyBuffer<T>: owned, zero-initialised, page-aligned memory that takes address space only, until
// pages are written: for tables that are large when all of them is used and rarely are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "base/buffer.h"

namespace kvquant {

// Zeroed pages. Throws OutOfMemory naming the size.
void* map_pages(size_t num_bytes);
void unmap_pages(void* data, size_t num_bytes) noexcept;

template <class T>
class LazyBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  LazyBuffer() = default;
  explicit LazyBuffer(int64_t size) : data_(map(size), Unmap{size}) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return data_.get_deleter().size; }

 private:
  struct Unmap {
    int64_t size = 0;
    void operator()(T* data) const noexcept {
      unmap_pages(data, static_cast<size_t>(size) * sizeof(T));
    }
  };
  static T* map(int64_t size) {
    if (size < 0 || size > INT64_MAX / static_cast<int64_t>(sizeof(T))) {
      throw_buffer_size(size, sizeof(T));
    }
    return size == 0 ? nullptr : static_cast<T*>(map_pages(static_cast<size_t>(size) * sizeof(T)));
  }

  std::unique_ptr<T, Unmap> data_;
};

}  // namespace kvquant
