// The checks of padded tensors: where the real tokens of a batch are, and that they are finite.
#pragma once

#include <cstdint>
#include <vector>

#include "kvquant/tensor_view.h"

namespace kvquant {

using BatchView = TensorView<const float, 4>;   // [batch, num_heads, seq_len, head_dim]
using MaskView = TensorView<const uint8_t, 2>;  // [batch, seq_len], no data: all tokens are real

struct TokenRange {
  int64_t first = 0;
  int64_t count = 0;
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

// Positions of each row's real tokens. Throws std::invalid_argument, naming row and position.
std::vector<TokenRange> token_ranges(MaskView mask);

// The same of a batch's mask. Also throws when the mask has another shape than x.
std::vector<TokenRange> token_ranges(const char* op, BatchView x, MaskView mask);

// Throws std::invalid_argument, starting with `op`, for negative sizes, no head or no channel,
// more than 2^48 elements (so that products of sizes don't overflow), missing data, and a last
// dimension that is strided.
void check_batch(const char* op, BatchView x);

// Throws std::invalid_argument naming batch, head, token and channel of the first real value that
// is not finite.
void check_finite(const char* op, BatchView x, const std::vector<TokenRange>& ranges);

}  // namespace kvquant
