#include "cache/blocked_sparse.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "base/half.h"

namespace kvquant {
namespace {

template <class T>
T load(const std::byte* bytes, int64_t i) {
  T x;
  std::memcpy(&x, bytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return x;
}

template <class T>
void store(std::byte* bytes, int64_t i, T x) {
  std::memcpy(bytes + i * static_cast<int64_t>(sizeof(T)), &x, sizeof(T));
}

}  // namespace

int32_t SparsePiece::index(int64_t i) const {
  return index_bytes == 1 ? load<uint8_t>(indices, i) : load<uint16_t>(indices, i);
}

float SparsePiece::value(int64_t i) const {
  return value_type == SparseValueType::kF16 ? to_float(load<Half>(values, i))
                                             : load<float>(values, i);
}

BlockedSparse::BlockedSparse(int64_t width, int64_t block_size, SparseValueType value_type)
    : block_size_(block_size),
      value_type_(value_type),
      index_bytes_(width <= 256 ? 1 : 2),
      value_bytes_(value_type == SparseValueType::kF16 ? 2 : 4),
      end_bytes_(width * block_size <= UINT16_MAX ? 2 : 4) {
  assert(1 <= width && width <= kSparseMostWidth);
  assert(1 <= block_size && block_size <= kSparseMostBlockSize);
}

// What was allocated before memory ran out stays for the next append.
void BlockedSparse::make_room(int64_t num_entries) {
  if (blocks_.size() <= num_tokens_ / block_size_) {
    blocks_.push_back({num_nonzeros_, Buffer<std::byte>(block_size_ * end_bytes_)});
  }
  while (sparse_pages_capacity(pages_.size()) < num_nonzeros_ + num_entries) {
    const int64_t size = sparse_page_of(sparse_pages_capacity(pages_.size())).size;
    pages_.push_back(Buffer<std::byte>(size * (index_bytes_ + value_bytes_)));
  }
}

void BlockedSparse::write(SparsePiece piece, const int32_t* indices, const float* values) {
  auto* to_indices = const_cast<std::byte*>(piece.indices);
  auto* to_values = const_cast<std::byte*>(piece.values);
  for (int64_t i = 0; i < piece.count; ++i) {
    if (index_bytes_ == 1) {
      store(to_indices, i, static_cast<uint8_t>(indices[i]));
    } else {
      store(to_indices, i, static_cast<uint16_t>(indices[i]));
    }
  }
  if (value_type_ == SparseValueType::kF32) {
    std::memcpy(to_values, values, static_cast<size_t>(piece.count) * sizeof(float));
  } else {
    for (int64_t i = 0; i < piece.count; ++i) store(to_values, i, to_half(values[i]));
  }
}

void BlockedSparse::append(std::span<const int32_t> indices, std::span<const float> values) {
  const auto count = static_cast<int64_t>(indices.size());
  make_room(count);
  for (int64_t done = 0; done < count;) {
    const SparsePiece piece = piece_of({num_nonzeros_ + done, num_nonzeros_ + count});
    write(piece, indices.data() + done, values.data() + done);
    done += piece.count;
  }
  num_nonzeros_ += count;
  Block& block = blocks_[num_tokens_ / block_size_];
  const int64_t end = num_nonzeros_ - block.first_entry;
  if (end_bytes_ == 2) {
    store(block.ends.data(), num_tokens_ % block_size_, static_cast<uint16_t>(end));
  } else {
    store(block.ends.data(), num_tokens_ % block_size_, static_cast<uint32_t>(end));
  }
  ++num_tokens_;
}

int64_t BlockedSparse::end_in_block(const Block& block, int64_t i) const {
  return end_bytes_ == 2 ? load<uint16_t>(block.ends.data(), i)
                         : load<uint32_t>(block.ends.data(), i);
}

BlockedSparse::Range BlockedSparse::entries_of(int64_t token) const {
  assert(0 <= token && token < num_tokens_);
  const Block& block = blocks_[token / block_size_];
  const int64_t i = token % block_size_;
  const int64_t first = i == 0 ? 0 : end_in_block(block, i - 1);
  return {block.first_entry + first, block.first_entry + end_in_block(block, i)};
}

SparsePiece BlockedSparse::piece_of(Range range) const {
  const auto [page, i, size] = sparse_page_of(range.first);
  const std::byte* data = pages_[page].data();
  return {.count = std::min(range.end - range.first, size - i),
          .indices = data + i * index_bytes_,
          .values = data + size * index_bytes_ + i * value_bytes_,
          .index_bytes = index_bytes_,
          .value_type = value_type_};
}

SparseFootprint BlockedSparse::footprint() const {
  SparseFootprint f;
  f.offset_bytes = static_cast<int64_t>(sizeof(*this)) + blocks_.num_bytes() + pages_.num_bytes();
  // Buffers are rounded up to their alignment; pages are multiples of it anyway.
  const int64_t alignment = kBufferAlignment;
  const int64_t ends_bytes = (block_size_ * end_bytes_ + alignment - 1) / alignment * alignment;
  f.offset_bytes += blocks_.size() * ends_bytes;
  f.data_bytes = sparse_pages_capacity(pages_.size()) * (index_bytes_ + value_bytes_);
  f.total_bytes = f.offset_bytes + f.data_bytes;
  f.num_nonzeros = num_nonzeros_;
  return f;
}

}  // namespace kvquant
