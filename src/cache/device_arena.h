// Memory of a device that is allocated once and handed out in pieces: blocks, pages and rows of
// sequences, so that no token costs an allocation. First fit; free neighbours become one. Pieces
// count their users, as forks share them. Not thread-safe.
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
  static int64_t piece_bytes(int64_t num_bytes);      // that a piece of so many takes

  // Zeroed. Throws OutOfMemory naming the sizes; nothing has changed then.
  std::byte* take(int64_t num_bytes);
  // One more user of a piece that is taken.
  void share(const std::byte* piece);
  bool is_shared(const std::byte* piece) const;
  // The piece once more, in memory of its own. Throws OutOfMemory as take does.
  std::byte* copy(const std::byte* piece);
  void give(std::byte* piece) noexcept;  // of one user; null: nothing

 private:
  using Pieces = std::map<int64_t, int64_t>;  // bytes by offset

  CudaDevice* device_;
  DeviceArray<std::byte> memory_;
  Pieces free_, taken_;
  std::map<int64_t, int64_t> more_users_;  // by offset; none: one user
  int64_t held_bytes_ = 0;
};

// One piece. Copies share its memory: who writes calls own() before.
template <class T>
class ArenaPiece {
 public:
  ArenaPiece() = default;
  ArenaPiece(DeviceArena& arena, int64_t size)
      : arena_(&arena), data_(arena.take(size * kItemBytes)), size_(size) {}
  ArenaPiece(const ArenaPiece& other)
      : arena_(other.arena_), data_(other.data_), size_(other.size_) {
    if (arena_ != nullptr) arena_->share(data_);
  }
  ArenaPiece(ArenaPiece&& other) noexcept { swap(other); }
  ArenaPiece& operator=(ArenaPiece other) noexcept {
    swap(other);
    return *this;
  }
  ~ArenaPiece() {
    if (arena_ != nullptr) arena_->give(data_);
  }
  T* data() const { return reinterpret_cast<T*>(data_); }
  int64_t size() const { return size_; }
  // That it takes, whoever shares them.
  int64_t num_bytes() const {
    return arena_ == nullptr ? 0 : DeviceArena::piece_bytes(size_ * kItemBytes);
  }
  bool is_shared() const { return arena_ != nullptr && arena_->is_shared(data_); }
  // Leaves shared memory for a copy. Throws OutOfMemory.
  void own() {
    if (!is_shared()) return;
    std::byte* copied = arena_->copy(data_);
    arena_->give(data_);
    data_ = copied;
  }

 private:
  // T may be a pointer, whose own size is meant.
  static constexpr int64_t kItemBytes = sizeof(T);  // NOLINT(bugprone-sizeof-expression)

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
