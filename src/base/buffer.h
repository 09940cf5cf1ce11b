// Buffer<T>: owned, zero-initialised, 64-byte aligned memory. Movable, not copyable: copying
// something big has a name. Large buffers ask for huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

namespace kvquant {

inline constexpr size_t kBufferAlignment = 64;  // bytes: a cache line, and a 512-bit register

// Zeroed bytes, aligned to kBufferAlignment. Throws OutOfMemory naming the size.
void* allocate_aligned(size_t num_bytes);
void free_aligned(void* data) noexcept;

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : data_(size > 0 ? static_cast<T*>(allocate_aligned(checked_bytes(size))) : nullptr),
        size_(size) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t num_bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  std::span<T> span() { return {data(), static_cast<size_t>(size_)}; }
  std::span<const T> span() const { return {data(), static_cast<size_t>(size_)}; }

  // Makes room for `size` elements; what was in it is lost when it grows.
  void reserve_discarding(int64_t size) {
    if (size > size_) *this = Buffer(size);
  }

 private:
  struct Free {
    void operator()(T* data) const noexcept { free_aligned(data); }
  };
  static size_t checked_bytes(int64_t size);

  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

[[noreturn]] void throw_buffer_size(int64_t size, size_t element_bytes);

template <class T>
size_t Buffer<T>::checked_bytes(int64_t size) {
  if (size < 0 || size > INT64_MAX / static_cast<int64_t>(sizeof(T))) {
    throw_buffer_size(size, sizeof(T));
  }
  return static_cast<size_t>(size) * sizeof(T);
}

}  // namespace kvquant
