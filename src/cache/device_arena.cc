#include "cache/device_arena.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <iterator>

#include "kvquant/error.h"

namespace kvquant {

DeviceArena::DeviceArena(CudaDevice& device, int64_t num_bytes)
    : device_(&device), memory_(device, (num_bytes + kUnit - 1) / kUnit * kUnit) {
  if (memory_.num_bytes() > 0) free_[0] = memory_.num_bytes();
}

int64_t DeviceArena::piece_bytes(int64_t num_bytes) {
  return (std::max<int64_t>(num_bytes, 1) + kUnit - 1) / kUnit * kUnit;
}

std::byte* DeviceArena::take(int64_t num_bytes) {
  const int64_t size = piece_bytes(num_bytes);
  const auto found =
      std::find_if(free_.begin(), free_.end(), [&](const auto& x) { return x.second >= size; });
  if (found == free_.end()) {
    throw OutOfMemory(
        fmt::format("device cache: {} bytes more than the {} held of {} were asked for", size,
                    held_bytes_, memory_.num_bytes()));
  }
  const auto [offset, room] = *found;
  taken_.emplace(offset, size);
  if (room > size) free_.emplace_hint(std::next(found), offset + size, room - size);
  free_.erase(found);
  held_bytes_ += size;
  device_->clear(memory_.data() + offset, size);
  return memory_.data() + offset;
}

void DeviceArena::share(const std::byte* piece) { ++more_users_[piece - memory_.data()]; }

bool DeviceArena::is_shared(const std::byte* piece) const {
  return more_users_.contains(piece - memory_.data());
}

std::byte* DeviceArena::copy(const std::byte* piece) {
  const int64_t size = taken_.at(piece - memory_.data());
  std::byte* copied = take(size);
  device_->copy(copied, piece, size);
  return copied;
}

void DeviceArena::give(std::byte* piece) noexcept {
  if (piece == nullptr) return;
  const auto others = more_users_.find(piece - memory_.data());
  if (others != more_users_.end()) {
    if (--others->second == 0) more_users_.erase(others);
    return;
  }
  auto node = taken_.extract(piece - memory_.data());
  assert(!node.empty());
  held_bytes_ -= node.mapped();
  const auto at = free_.insert(std::move(node)).position;
  const auto next = std::next(at);
  if (next != free_.end() && at->first + at->second == next->first) {
    at->second += next->second;
    free_.erase(next);
  }
  if (at == free_.begin()) return;
  const auto before = std::prev(at);
  if (before->first + before->second != at->first) return;
  before->second += at->second;
  free_.erase(at);
}

}  // namespace kvquant
