// Blocks of one size, carved from slabs that never move. A block may have several users; when the
// last one gives it back, it is taken again before new memory is asked for. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "cache/memory_account.h"

namespace kvquant {

class BlockPool {
 public:
  // block_bytes: a multiple of 64, so that blocks are aligned to cache lines. Blocks in use are
  // counted in `account` (null: nowhere), which must outlive the pool.
  explicit BlockPool(int64_t block_bytes, MemoryAccount* account = nullptr);

  int64_t block_bytes() const { return block_bytes_; }
  int64_t num_taken() const { return num_taken_; }  // shared blocks once
  int64_t slab_bytes() const;                       // all memory the pool holds, taken or free

  std::byte* take();  // zeroed, of one user; throws OutOfMemory
  // Of blocks that were taken: one user more, one user less.
  void share(std::byte* block) noexcept;
  void give(std::byte* block) noexcept;
  bool is_shared(const std::byte* block) const noexcept;  // has more than one user

 private:
  struct Slab {
    Buffer<std::byte> memory;
    std::vector<uint32_t> num_users;  // of each block
  };
  void add_slab();
  uint32_t& num_users(const std::byte* block) noexcept;

  int64_t block_bytes_;
  MemoryAccount* account_;
  int64_t blocks_per_slab_;
  int64_t num_taken_ = 0;
  std::vector<Slab> slabs_;       // by address
  std::vector<std::byte*> free_;  // has room for every block, so that give can't throw
};

}  // namespace kvquant
