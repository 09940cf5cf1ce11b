#include "cache/block_pool.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace kvquant {
namespace {

constexpr int64_t kSlabBytes = 1 << 20;  // at least one block

}  // namespace

BlockPool::BlockPool(int64_t block_bytes)
    : block_bytes_(block_bytes), blocks_per_slab_(std::max<int64_t>(1, kSlabBytes / block_bytes)) {
  assert(block_bytes > 0 && block_bytes % static_cast<int64_t>(kBufferAlignment) == 0);
}

int64_t BlockPool::slab_bytes() const {
  return static_cast<int64_t>(slabs_.size()) * blocks_per_slab_ * block_bytes_;
}

std::byte* BlockPool::take() {
  if (free_.empty()) {
    free_.reserve((slabs_.size() + 1) * static_cast<size_t>(blocks_per_slab_));
    slabs_.emplace_back(blocks_per_slab_ * block_bytes_);
    for (int64_t i = blocks_per_slab_ - 1; i >= 0; --i) {
      free_.push_back(slabs_.back().data() + i * block_bytes_);
    }
  }
  std::byte* block = free_.back();
  free_.pop_back();
  ++num_taken_;
  std::memset(block, 0, static_cast<size_t>(block_bytes_));
  return block;
}

void BlockPool::give(std::byte* block) noexcept {
  assert(num_taken_ > 0);
  --num_taken_;
  free_.push_back(block);
}

}  // namespace kvquant
