#include "cache/block_pool.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>

namespace kvquant {
namespace {

constexpr int64_t kSlabBytes = 1 << 20;  // at least one block

}  // namespace

BlockPool::BlockPool(int64_t block_bytes, MemoryAccount* account)
    : block_bytes_(block_bytes),
      account_(account),
      blocks_per_slab_(std::max<int64_t>(1, kSlabBytes / block_bytes)) {
  assert(block_bytes > 0 && block_bytes % static_cast<int64_t>(kBufferAlignment) == 0);
}

int64_t BlockPool::slab_bytes() const {
  return static_cast<int64_t>(slabs_.size()) * blocks_per_slab_ * block_bytes_;
}

void BlockPool::add_slab() {
  free_.reserve((slabs_.size() + 1) * static_cast<size_t>(blocks_per_slab_));
  Slab slab{Buffer<std::byte>(blocks_per_slab_ * block_bytes_),
            std::vector<uint32_t>(static_cast<size_t>(blocks_per_slab_))};
  std::byte* memory = slab.memory.data();
  const auto at = std::upper_bound(
      slabs_.begin(), slabs_.end(), memory,
      [](const std::byte* a, const Slab& b) { return std::less<>()(a, b.memory.data()); });
  slabs_.insert(at, std::move(slab));
  for (int64_t i = blocks_per_slab_ - 1; i >= 0; --i) free_.push_back(memory + i * block_bytes_);
}

uint32_t& BlockPool::num_users(const std::byte* block) noexcept {
  const auto after = std::upper_bound(
      slabs_.begin(), slabs_.end(), block,
      [](const std::byte* a, const Slab& b) { return std::less<>()(a, b.memory.data()); });
  assert(after != slabs_.begin());
  Slab& slab = *(after - 1);
  return slab.num_users[static_cast<size_t>((block - slab.memory.data()) / block_bytes_)];
}

std::byte* BlockPool::take() {
  if (account_ != nullptr) account_->add(block_bytes_);
  if (free_.empty()) {
    try {
      add_slab();
    } catch (...) {
      if (account_ != nullptr) account_->remove(block_bytes_);
      throw;
    }
  }
  std::byte* block = free_.back();
  free_.pop_back();
  ++num_taken_;
  num_users(block) = 1;
  std::memset(block, 0, static_cast<size_t>(block_bytes_));
  return block;
}

void BlockPool::share(std::byte* block) noexcept {
  assert(num_users(block) > 0);
  ++num_users(block);
}

void BlockPool::give(std::byte* block) noexcept {
  assert(num_users(block) > 0);
  if (--num_users(block) > 0) return;
  --num_taken_;
  if (account_ != nullptr) account_->remove(block_bytes_);
  free_.push_back(block);
}

bool BlockPool::is_shared(const std::byte* block) const noexcept {
  return const_cast<BlockPool*>(this)->num_users(block) > 1;
}

}  // namespace kvquant
