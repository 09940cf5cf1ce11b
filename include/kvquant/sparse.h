// Outliers kept exactly, in compressed sparse form that grows one token after the other: CSC for
// keys (a column is a token), CSR for values (a row is a token). Both are one structure
// (docs/sparse.md): nothing that was appended ever moves, and an append costs the same at any
// length.
//
// Indices are stored in 8 bits where num_rows (or num_cols) is at most 256, else in 16; values as
// given. Not thread-safe: appends need exclusive access, reads may share. A moved-from matrix is an
// empty one of the same shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace kvquant {

enum class SparseValueType {
  kF32,
  kF16,  // values must be fp16 numbers: nothing is ever rounded
};

// One array of each, as scipy and torch have them. Token t has entries offsets[t] up to, not
// including, offsets[t + 1].
struct StandardSparse {
  std::vector<int64_t> offsets;  // [num_tokens + 1]
  std::vector<int32_t> indices;  // [num_nonzeros], ascending within a token
  std::vector<float> values;     // [num_nonzeros]
};

struct SparseDense {
  int64_t num_rows = 0, num_cols = 0;
  std::vector<float> values;  // [num_rows, num_cols], row-major
};

// Allocated bytes, exactly, without what malloc adds to an allocation.
struct SparseFootprint {
  int64_t offset_bytes = 0;  // where tokens end, and the directories of blocks and pages
  int64_t data_bytes = 0;    // indices and values, with the unused rest of the last page
  int64_t total_bytes = 0;   // both
  int64_t num_nonzeros = 0;
};

// Neighbouring entries of one token. They lie in one page; a token that crosses the end of a page
// has several pieces. Stays valid until the matrix is destroyed or assigned to.
struct SparsePiece {
  int64_t count = 0;
  const std::byte* indices = nullptr;  // index_bytes each
  const std::byte* values = nullptr;   // of value_type
  int index_bytes = 1;                 // 1 or 2
  SparseValueType value_type = SparseValueType::kF32;

  int32_t index(int64_t i) const;
  float value(int64_t i) const;
};

class BlockedSparse;  // src/cache/blocked_sparse.h

// What the two matrices share. `width` is the length of a token: rows of a CSC, columns of a CSR.
class BlockedTokens {
 public:
  // Appends the entries of one token. Requires: as many values as indices, indices ascending,
  // unique and in [0, width), values finite, and fp16 numbers with kF16. An explicit zero is kept;
  // a token without entries is fine. Throws std::invalid_argument or OutOfMemory; then the matrix
  // is unchanged.
  void append_token(std::span<const int32_t> indices, std::span<const float> values);
  void append(std::span<const int32_t> indices, std::span<const float> values) {
    append_token(indices, values);
  }

  // Appends offsets.size() - 1 tokens in the form of StandardSparse; offsets start at 0 and end at
  // indices.size(). As append_token for each; a bad one leaves the matrix unchanged, but when
  // memory runs out the tokens before stay.
  void append_batch(std::span<const int64_t> offsets, std::span<const int32_t> indices,
                    std::span<const float> values);
  void batch_append(std::span<const int64_t> offsets, std::span<const int32_t> indices,
                    std::span<const float> values) {
    append_batch(offsets, indices, values);
  }

  int64_t num_tokens() const;
  int64_t num_nonzeros() const;
  int64_t num_blocks() const;
  int64_t block_size() const { return block_size_; }  // tokens
  SparseValueType value_type() const { return value_type_; }
  SparseFootprint memory_footprint() const;

  // The entries of a token, first to last. Requires: 0 <= token < num_tokens().
  int64_t num_nonzeros(int64_t token) const;
  std::vector<SparsePiece> pieces(int64_t token) const;

 protected:
  BlockedTokens(const char* name, int64_t width, int64_t block_size, SparseValueType value_type);
  BlockedTokens(BlockedTokens&& other) noexcept;
  BlockedTokens& operator=(BlockedTokens&& other) noexcept;
  ~BlockedTokens();

  StandardSparse standard() const;
  enum class Order { kTokensAreRows, kTokensAreColumns };
  SparseDense dense(Order order) const;

  int64_t width_;

 private:
  BlockedSparse& made_tokens();
  void check_token(int64_t token) const;

  const char* name_;
  int64_t block_size_;
  SparseValueType value_type_;
  std::unique_ptr<BlockedSparse> tokens_;  // made by the first append
};

// [num_rows, num_tokens]: keys of num_rows channels.
class BlockedCSCMatrix : public BlockedTokens {
 public:
  // Requires: 1 <= num_rows <= 65536, 1 <= block_size <= 32768. Throws std::invalid_argument.
  BlockedCSCMatrix(int64_t num_rows, int64_t block_size,
                   SparseValueType value_type = SparseValueType::kF32)
      : BlockedTokens("BlockedCSCMatrix", num_rows, block_size, value_type) {}

  int64_t num_rows() const { return width_; }
  int64_t num_cols() const { return num_tokens(); }
  SparseDense to_dense() const { return dense(Order::kTokensAreColumns); }
  StandardSparse to_standard_csc() const { return standard(); }
};

// [num_tokens, num_cols]: values of num_cols channels.
class BlockedCSRMatrix : public BlockedTokens {
 public:
  // Requires: 1 <= num_cols <= 65536, 1 <= block_size <= 32768. Throws std::invalid_argument.
  BlockedCSRMatrix(int64_t num_cols, int64_t block_size,
                   SparseValueType value_type = SparseValueType::kF32)
      : BlockedTokens("BlockedCSRMatrix", num_cols, block_size, value_type) {}

  int64_t num_rows() const { return num_tokens(); }
  int64_t num_cols() const { return width_; }
  SparseDense to_dense() const { return dense(Order::kTokensAreRows); }
  StandardSparse to_standard_csr() const { return standard(); }
};

}  // namespace kvquant
