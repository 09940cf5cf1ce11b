// The blocks of one growing array, in order. Forks of an array share its blocks; whoever wants to
// write one of them takes a copy first. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "cache/block_pool.h"

namespace kvquant {

// T: how the bytes of a block are read.
template <class T>
class BlockList {
 public:
  // `pool` must outlive the list; its blocks have at least sizeof(T) bytes.
  explicit BlockList(BlockPool& pool) : pool_(&pool) {}
  BlockList(const BlockList&) = delete;
  BlockList& operator=(const BlockList&) = delete;
  BlockList(BlockList&& other) noexcept : pool_(other.pool_) { blocks_.swap(other.blocks_); }
  BlockList& operator=(BlockList&& other) noexcept {
    std::swap(pool_, other.pool_);
    blocks_.swap(other.blocks_);
    return *this;
  }
  ~BlockList() { shrink(0); }

  // A list of the same blocks.
  BlockList fork() const {
    BlockList out(*pool_);
    out.blocks_ = blocks_;
    for (T* block : blocks_) pool_->share(bytes(block));
    return out;
  }

  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  T* operator[](int64_t i) const { return blocks_[static_cast<size_t>(i)]; }
  std::span<T* const> all() const { return blocks_; }
  int64_t block_bytes() const { return size() * pool_->block_bytes(); }  // shared ones, too
  int64_t table_bytes() const { return size() * static_cast<int64_t>(sizeof(T*)); }

  // Makes blocks [first, count) this list's alone, with the contents they have; new ones are
  // zeroed. Throws OutOfMemory; contents are as before then.
  void own(int64_t first, int64_t count) {
    for (int64_t i = first; i < std::min(count, size()); ++i) {
      T*& block = blocks_[static_cast<size_t>(i)];
      if (!pool_->is_shared(bytes(block))) continue;
      std::byte* copy = pool_->take();
      std::memcpy(copy, block, static_cast<size_t>(pool_->block_bytes()));
      pool_->give(bytes(block));
      block = reinterpret_cast<T*>(copy);
    }
    if (count > static_cast<int64_t>(blocks_.capacity())) {
      blocks_.reserve(static_cast<size_t>(std::max(count, 2 * size())));
    }
    while (size() < count) {
      blocks_.push_back(reinterpret_cast<T*>(pool_->take()));
    }
  }

  // Appends blocks [first, first + count) of a list of the same pool, which then share them.
  void append_shared(const BlockList& other, int64_t first, int64_t count) {
    blocks_.reserve(static_cast<size_t>(size() + count));
    for (int64_t i = first; i < first + count; ++i) {
      pool_->share(bytes(other[i]));
      blocks_.push_back(other[i]);
    }
  }

  // Gives up the blocks from `count` on.
  void shrink(int64_t count) noexcept {
    while (size() > count) {
      pool_->give(bytes(blocks_.back()));
      blocks_.pop_back();
    }
  }

 private:
  static std::byte* bytes(T* block) { return reinterpret_cast<std::byte*>(block); }

  BlockPool* pool_;
  std::vector<T*> blocks_;
};

}  // namespace kvquant
