// Blocks of one size, carved from slabs that never move; given back, they are taken again before
// new memory is asked for. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"

namespace kvquant {

class BlockPool {
 public:
  // block_bytes: a multiple of 64, so that blocks are aligned to cache lines.
  explicit BlockPool(int64_t block_bytes);

  int64_t block_bytes() const { return block_bytes_; }
  int64_t num_taken() const { return num_taken_; }
  int64_t slab_bytes() const;  // all memory the pool holds, taken or free

  std::byte* take();  // zeroed; throws OutOfMemory
  void give(std::byte* block) noexcept;

 private:
  int64_t block_bytes_;
  int64_t blocks_per_slab_;
  int64_t num_taken_ = 0;
  std::vector<Buffer<std::byte>> slabs_;
  std::vector<std::byte*> free_;  // has room for every block, so that give can't throw
};

}  // namespace kvquant
