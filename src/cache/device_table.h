// Lists of addresses of one side of a sequence, its blocks or the pages of its outliers, where
// kernels look them up: in memory of the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/device_arena.h"

namespace kvquant {

template <class T>
class DeviceTable {
 public:
  // Room that a table of lists of num_entries takes at most.
  static int64_t most_bytes(int64_t num_lists, int64_t num_entries) {
    return DeviceArena::piece_bytes(num_lists * room_for(num_entries) * kItemBytes);
  }

  // The lists become these. Copies of a table share its memory: one that is shared is left. Throws
  // OutOfMemory.
  void assign(std::span<const std::span<T* const>> lists, CudaDevice& device, DeviceArena& arena) {
    int64_t longest = 0;
    for (const auto& list : lists) longest = std::max(longest, std::ssize(list));
    if (longest > room_ || piece_.is_shared()) {
      piece_ = {};
      room_ = room_for(longest);
      piece_ = ArenaPiece<T*>(arena, std::ssize(lists) * room_);
    }
    std::vector<T*> all;
    for (const auto& list : lists) {
      all.insert(all.end(), list.begin(), list.end());
      if (&list != &lists.back()) all.resize(all.size() + static_cast<size_t>(room_) - list.size());
    }
    device.copy_in(piece_.data(), all.data(), std::ssize(all) * kItemBytes);
  }
  void assign(std::span<T* const> list, CudaDevice& device, DeviceArena& arena) {
    assign(std::span(&list, 1), device, arena);
  }

  T* const* data() const { return piece_.data(); }
  int64_t step() const { return room_; }  // entries from one list to the next
  int64_t num_bytes() const { return piece_.num_bytes(); }
  void own() { piece_.own(); }

 private:
  static constexpr int64_t kItemBytes = sizeof(void*);
  // Grows by a quarter.
  static int64_t room_for(int64_t num_entries) {
    return (num_entries + num_entries / 4 + 7) / 8 * 8;
  }

  ArenaPiece<T*> piece_;
  int64_t room_ = 0;  // entries of a list
};

}  // namespace kvquant
