// Rotary position embedding (arXiv 2104.09864) in Hugging Face's convention: channel c rotates with
// channel c + head_dim / 2 by the angle position * frequency[c], theta^(-2c / head_dim) as a rule
// (rope_scaling.h has the others).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/lazy_buffer.h"
#include "formats/dense_tile.h"
#include "kvquant/tensor_view.h"

namespace kvquant {

// Rotations within a tile, the same for every tile; pointers into a RopeTable. Token t of a tile at
// n0 is at position n0 + t, and R_(n0 + t) = R_(n0 + kMiddle) R_(t - kMiddle).
struct RopeTiles {
  static constexpr int64_t kMiddle = 32;     // token relative to which tiles are rotated
  static constexpr int64_t kLaneMiddle = 8;  // the same of 16 tokens
  const float* tile_cos = nullptr;           // [head_dim / 2][64], of t - kMiddle
  const float* tile_sin = nullptr;
  const float* lane_cos_sin = nullptr;            // [head_dim / 2][2][16], of t - kLaneMiddle
  const float* frequencies = nullptr;             // [head_dim / 2], angle between positions
  const float* near_cos[2] = {nullptr, nullptr};  // [head_dim / 2], of angles of 8 and 24 tokens
  const float* near_sin[2] = {nullptr, nullptr};
};

// cos and sin for positions [0, num_positions), in double, computed from the front as far as they
// were asked for: a context of 262,144 tokens of 128 channels would take 128 MiB. Thread-safe after
// construction.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(int64_t head_dim, int64_t num_positions, double theta);
  // frequencies [head_dim / 2]: angles between neighbouring positions, at least 0.
  RopeTable(int64_t num_positions, std::span<const double> frequencies);

  int64_t head_dim() const { return head_dim_; }
  int64_t num_positions() const { return num_positions_; }
  // Rows of head_dim / 2 values, kTileTokens of them from `position` on, behind num_positions as
  // well, so that every tile that begins inside has a middle. They stay where they are.
  const float* cos(int64_t position) const {
    return rows_up_to(position).cos.data() + position * (head_dim_ / 2);
  }
  const float* sin(int64_t position) const {
    return rows_up_to(position).sin.data() + position * (head_dim_ / 2);
  }
  const RopeTiles& tiles() const { return tiles_; }
  // Positions that are computed so far.
  int64_t num_rows() const { return rows_->count.load(std::memory_order_acquire); }

 private:
  struct Rows {
    Rows(int64_t num_positions, std::span<const double> angles);

    LazyBuffer<float> cos, sin;       // [num_positions + kTileTokens][head_dim / 2]
    std::vector<double> frequencies;  // [head_dim / 2]
    int64_t most;                     // num_positions + kTileTokens
    std::atomic<int64_t> count = 0;   // rows below are there and don't change
    std::mutex growing;               // held while rows from `count` on are computed
  };

  const Rows& rows_up_to(int64_t position) const {
    const int64_t end = std::min(position + kTileTokens, rows_->most);
    if (end > num_rows()) grow(end);
    return *rows_;
  }
  void grow(int64_t num_rows) const noexcept;

  int64_t head_dim_ = 0;
  int64_t num_positions_ = 0;
  std::unique_ptr<Rows> rows_;
  Buffer<float> tile_cos_, tile_sin_, lane_cos_sin_, frequencies_;
  RopeTiles tiles_;
};

// cos and sin of all positions of a tile, [head_dim / 2][64] each, from those of its token
// RopeTiles::kMiddle, [half].
void turn_tile(const RopeTiles& tiles, const float* middle_cos, const float* middle_sin,
               int64_t half, float* cos, float* sin) noexcept;

// Rotates x [num_tokens, num_heads, head_dim] in place; token i is at first_position + i.
// Throws std::invalid_argument when a position is outside the table.
void rope(TensorView<float, 3> x, int64_t first_position, const RopeTable& table);

// One vector [head_dim] at one position; for callers that did the checks.
void rope_row(float* x, const float* cos, const float* sin, int64_t head_dim) noexcept;

}  // namespace kvquant
