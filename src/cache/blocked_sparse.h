// The structure behind BlockedCSCMatrix and BlockedCSRMatrix (kvquant/sparse.h): tokens in blocks,
// their entries in one list of pages. Nothing moves, and appending allocates at most what one token
// needs.
//
//   block                        bytes           page of n entries (sparse_pages.h)   bytes
//   first entry  i64             8               indices  u8 or u16                   n or 2 n
//   end[block_size] u16 or u32   2 or 4 each     values   f32 or fp16                 4 n or 2 n
//
// Token t is in block t / block_size. Its entries are those from the end of the token before it up
// to its own end, counted from the block's first entry; entry e is in page e / 512. Ends have 16
// bits where all tokens of a block together can't have more than 65535 entries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/buffer.h"
#include "cache/segmented_array.h"
#include "cache/sparse_pages.h"
#include "kvquant/sparse.h"

namespace kvquant {

inline constexpr int64_t kSparseMostWidth = 65536;
inline constexpr int64_t kSparseMostBlockSize = 32768;  // so that an end fits 32 bits

class BlockedSparse {
 public:
  // Requires: 1 <= width <= kSparseMostWidth, 1 <= block_size <= kSparseMostBlockSize.
  BlockedSparse(int64_t width, int64_t block_size, SparseValueType value_type);

  // Requires: what BlockedTokens::append_token checks. Throws OutOfMemory; then nothing changed.
  void append(std::span<const int32_t> indices, std::span<const float> values);

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_nonzeros() const { return num_nonzeros_; }
  int64_t num_blocks() const { return (num_tokens_ + block_size_ - 1) / block_size_; }
  SparseFootprint footprint() const;

  struct Range {
    int64_t first = 0, end = 0;  // entries
  };
  Range entries_of(int64_t token) const;
  // The entries of `range` in the page of its first one.
  SparsePiece piece_of(Range range) const;

 private:
  struct Block {
    int64_t first_entry = 0;
    Buffer<std::byte> ends;
  };

  void make_room(int64_t num_entries);
  void write(SparsePiece piece, const int32_t* indices, const float* values);
  int64_t end_in_block(const Block& block, int64_t i) const;

  int64_t block_size_;
  SparseValueType value_type_;
  int index_bytes_, value_bytes_, end_bytes_;
  int64_t num_tokens_ = 0, num_nonzeros_ = 0;
  SegmentedArray<Block> blocks_;
  SegmentedArray<Buffer<std::byte>> pages_;
};

}  // namespace kvquant
