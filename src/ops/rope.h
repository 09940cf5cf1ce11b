// Rotary position embedding (arXiv 2104.09864) in Hugging Face's convention: channel c rotates with
// channel c + head_dim / 2 by the angle position * theta^(-2c / head_dim).
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "kvquant/tensor_view.h"

namespace kvquant {

// cos and sin for positions [0, num_positions), computed in double once.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(int64_t head_dim, int64_t num_positions, double theta);

  int64_t head_dim() const { return head_dim_; }
  int64_t num_positions() const { return num_positions_; }
  // head_dim / 2 values each; there for kTileTokens positions more, so that every tile that begins
  // inside has a middle.
  const float* cos(int64_t position) const { return cos_.data() + position * (head_dim_ / 2); }
  const float* sin(int64_t position) const { return sin_.data() + position * (head_dim_ / 2); }
  // Rotation within a tile, relative to its token kTileMiddle: [head_dim / 2][64], the same for
  // every tile. Token t at position n = n0 + t is R_n = R_(n0 + kTileMiddle) R_(t - kTileMiddle).
  static constexpr int64_t kTileMiddle = 32;
  const float* tile_cos() const { return tile_cos_.data(); }
  const float* tile_sin() const { return tile_sin_.data(); }
  // The same for 16 tokens around their token kLaneMiddle: cos and sin, [head_dim / 2][2][16].
  static constexpr int64_t kLaneMiddle = 8;
  const float* lane_cos_sin() const { return lane_cos_sin_.data(); }
  // The angle between neighbouring positions: [head_dim / 2], falling.
  const float* frequencies() const { return frequencies_.data(); }

 private:
  int64_t head_dim_ = 0;
  int64_t num_positions_ = 0;
  Buffer<float> cos_, sin_;
  Buffer<float> tile_cos_, tile_sin_, lane_cos_sin_;
  Buffer<float> frequencies_;
};

// Rotates x [num_tokens, num_heads, head_dim] in place; token i is at first_position + i.
// Throws std::invalid_argument when a position is outside the table.
void rope(TensorView<float, 3> x, int64_t first_position, const RopeTable& table);

// One vector [head_dim] at one position; for callers that did the checks.
void rope_row(float* x, const float* cos, const float* sin, int64_t head_dim) noexcept;

}  // namespace kvquant
