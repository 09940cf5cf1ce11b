// Rows of fp16 numbers that forks of a sequence share until one of them writes. Copying an object
// shares its numbers. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "base/buffer.h"
#include "base/half.h"
#include "cache/memory_account.h"

namespace kvquant {

class SharedRows {
 public:
  int64_t size() const { return block_ == nullptr ? 0 : block_->numbers.size(); }
  int64_t num_bytes() const { return size() * static_cast<int64_t>(sizeof(Half)); }
  const Half* data() const { return block_ == nullptr ? nullptr : block_->numbers.data(); }

  // Makes room for `size` numbers that nobody else sees, those of [first, first + num_kept) first;
  // the others are unspecified. `account` must outlive the rows. Throws OutOfMemory; nothing has
  // changed then.
  Half* own(int64_t size, int64_t first, int64_t num_kept, MemoryAccount& account) {
    const auto kept_bytes = static_cast<size_t>(num_kept) * sizeof(Half);
    if (this->size() >= size && block_.use_count() == 1) {
      Half* out = block_->numbers.data();
      if (num_kept > 0 && first > 0) std::memmove(out, out + first, kept_bytes);
      return out;
    }
    auto copy = std::make_shared<Block>(std::max(size, this->size()), account);
    if (num_kept > 0) std::memcpy(copy->numbers.data(), data() + first, kept_bytes);
    block_ = std::move(copy);
    return block_->numbers.data();
  }

 private:
  struct Block {
    Block(int64_t size, MemoryAccount& account) : account(account) {
      account.add(size * static_cast<int64_t>(sizeof(Half)));
      try {
        numbers = Buffer<Half>(size);
      } catch (...) {
        account.remove(size * static_cast<int64_t>(sizeof(Half)));
        throw;
      }
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block() { account.remove(numbers.num_bytes()); }
    Buffer<Half> numbers;
    MemoryAccount& account;
  };

  std::shared_ptr<Block> block_;
};

}  // namespace kvquant
