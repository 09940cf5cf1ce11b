// Memory of a device that is allocated once and handed out in pieces: blocks, pages and rows of
// sequences, so that no token costs an allocation. First fit; free neighbours become one. Not
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "ops/cuda_device.h"

namespace kvquant {

class DeviceArena {
 public:
  static constexpr int64_t kUnit = 256;  // bytes; pieces are multiples of it

  // `device` must outlive the arena. Throws OutOfMemory.
  DeviceArena(CudaDevice& device, int64_t num_bytes);

  std::byte* data() const { return memory_.data(); }
  int64_t num_bytes() const { return memory_.num_bytes(); }
  int64_t held_bytes() const { return held_bytes_; }  // of pieces that were not given back

  // Zeroed. Throws OutOfMemory naming the sizes; nothing has changed then.
  std::byte* take(int64_t num_bytes);
  void give(std::byte* piece) noexcept;  // null: nothing

 private:
  using Pieces = std::map<int64_t, int64_t>;  // bytes by offset

  CudaDevice* device_;
  DeviceArray<std::byte> memory_;
  Pieces free_, taken_;
  int64_t held_bytes_ = 0;
};

// One piece, owned.
template <class T>
class ArenaPiece {
 public:
  ArenaPiece() = default;
  ArenaPiece(DeviceArena& arena, int64_t size)
      : arena_(&arena), data_(arena.take(size * static_cast<int64_t>(sizeof(T)))), size_(size) {}
  ArenaPiece(ArenaPiece&& other) noexcept { swap(other); }
  ArenaPiece& operator=(ArenaPiece&& other) noexcept {
    swap(other);
    return *this;
  }
  ~ArenaPiece() {
    if (arena_ != nullptr) arena_->give(data_);
  }
  T* data() const { return reinterpret_cast<T*>(data_); }
  int64_t size() const { return size_; }

 private:
  void swap(ArenaPiece& other) noexcept {
    std::swap(arena_, other.arena_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  DeviceArena* arena_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace kvquant
