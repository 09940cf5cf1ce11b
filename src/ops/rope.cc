#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rope.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/check.h"
#include "ops/rope.h"
#include "ops/rope_scaling.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void rotate_row(float* HWY_RESTRICT x, const float* cos, const float* sin, int64_t head_dim) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t half = head_dim / 2;
  float* HWY_RESTRICT y = x + half;
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, y + i);
    const auto c = hn::LoadU(d, cos + i), s = hn::LoadU(d, sin + i);
    hn::StoreU(hn::MulSub(a, c, hn::Mul(b, s)), d, x + i);
    hn::StoreU(hn::MulAdd(b, c, hn::Mul(a, s)), d, y + i);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cos[i] - b * sin[i];
    y[i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(rotate_row);

namespace {

constexpr int64_t kGrowthRows = 4096;  // computed at a time: 5 ms for 128 channels

int64_t table_size(int64_t head_dim, int64_t num_positions) {
  check_arg(head_dim > 0 && head_dim % 2 == 0,
            fmt::format("rope: head_dim must be even and positive, not {}", head_dim));
  check_arg(num_positions >= 0 && num_positions <= INT64_MAX / head_dim - kTileTokens,
            fmt::format("rope: {} positions of {} channels", num_positions, head_dim));
  return (num_positions + kTileTokens) * (head_dim / 2);
}

}  // namespace

RopeTable::RopeTable(int64_t head_dim, int64_t num_positions, double theta)
    : RopeTable(num_positions, rope_frequencies(head_dim, theta, {}, num_positions)) {}

RopeTable::Rows::Rows(int64_t num_positions, std::span<const double> angles)
    : cos(table_size(2 * static_cast<int64_t>(angles.size()), num_positions)),
      sin(cos.size()),
      frequencies(angles.begin(), angles.end()),
      most(num_positions + kTileTokens) {}

RopeTable::RopeTable(int64_t num_positions, std::span<const double> frequencies)
    : head_dim_(2 * static_cast<int64_t>(frequencies.size())),
      num_positions_(num_positions),
      rows_(std::make_unique<Rows>(num_positions, frequencies)),
      tile_cos_(head_dim_ / 2 * kTileTokens),
      tile_sin_(head_dim_ / 2 * kTileTokens),
      lane_cos_sin_(head_dim_ / 2 * 32),
      frequencies_(head_dim_ / 2) {
  const int64_t half = head_dim_ / 2;
  for (int64_t c = 0; c < half; ++c) {
    const double frequency = frequencies[static_cast<size_t>(c)];
    check_arg(frequency >= 0 && std::isfinite(frequency),
              fmt::format("rope: a frequency of {}", frequency));
    frequencies_[c] = static_cast<float>(frequency);
    for (int64_t t = 0; t < kTileTokens; ++t) {
      const double angle = static_cast<double>(t - RopeTiles::kMiddle) * frequency;
      tile_cos_[c * kTileTokens + t] = static_cast<float>(std::cos(angle));
      tile_sin_[c * kTileTokens + t] = static_cast<float>(std::sin(angle));
    }
    for (int64_t t = 0; t < 16; ++t) {
      const double angle = static_cast<double>(t - RopeTiles::kLaneMiddle) * frequency;
      lane_cos_sin_[c * 32 + t] = static_cast<float>(std::cos(angle));
      lane_cos_sin_[c * 32 + 16 + t] = static_cast<float>(std::sin(angle));
    }
  }
  tiles_ = {.tile_cos = tile_cos_.data(),
            .tile_sin = tile_sin_.data(),
            .lane_cos_sin = lane_cos_sin_.data(),
            .frequencies = frequencies_.data(),
            .near_cos = {cos(8), cos(24)},
            .near_sin = {sin(8), sin(24)}};
}

void RopeTable::grow(int64_t num_rows) const noexcept {
  const std::lock_guard<std::mutex> lock(rows_->growing);
  const int64_t first = rows_->count.load(std::memory_order_relaxed);
  const int64_t steps = (num_rows + kGrowthRows - 1) / kGrowthRows;
  const int64_t end = std::min(steps * kGrowthRows, rows_->most);
  if (end <= first) return;  // another thread was first
  const int64_t half = head_dim_ / 2;
  for (int64_t position = first; position < end; ++position) {
    for (int64_t c = 0; c < half; ++c) {
      const double angle =
          static_cast<double>(position) * rows_->frequencies[static_cast<size_t>(c)];
      rows_->cos.data()[position * half + c] = static_cast<float>(std::cos(angle));
      rows_->sin.data()[position * half + c] = static_cast<float>(std::sin(angle));
    }
  }
  rows_->count.store(end, std::memory_order_release);
}

void turn_tile(const RopeTiles& tiles, const float* middle_cos, const float* middle_sin,
               int64_t half, float* cos, float* sin) noexcept {
  for (int64_t c = 0; c < half; ++c) {
    const float c0 = middle_cos[c], s0 = middle_sin[c];
    for (int64_t i = c * kTileTokens; i < (c + 1) * kTileTokens; ++i) {
      cos[i] = c0 * tiles.tile_cos[i] - s0 * tiles.tile_sin[i];
      sin[i] = s0 * tiles.tile_cos[i] + c0 * tiles.tile_sin[i];
    }
  }
}

void rope(TensorView<float, 3> x, int64_t first_position, const RopeTable& table) {
  const int64_t num_tokens = x.shape[0];
  if (x.shape[2] != table.head_dim()) {
    throw std::invalid_argument(
        fmt::format("rope: x has head_dim {}, the table {}", x.shape[2], table.head_dim()));
  }
  check_arg(x.stride[2] == 1, "rope: the innermost stride of x must be 1");
  if (first_position < 0 || num_tokens < 0 || num_tokens > table.num_positions() ||
      first_position > table.num_positions() - num_tokens) {
    throw std::invalid_argument(
        fmt::format("rope: positions [{}, {} + {}) are outside a table of {}", first_position,
                    first_position, num_tokens, table.num_positions()));
  }
  for (int64_t token = 0; token < num_tokens; ++token) {
    const float* cos = table.cos(first_position + token);
    const float* sin = table.sin(first_position + token);
    for (int64_t head = 0; head < x.shape[1]; ++head) {
      rope_row(x.data + token * x.stride[0] + head * x.stride[1], cos, sin, table.head_dim());
    }
  }
}

void rope_row(float* x, const float* cos, const float* sin, int64_t head_dim) noexcept {
  HWY_DYNAMIC_DISPATCH(rotate_row)(x, cos, sin, head_dim);
}

}  // namespace kvquant
#endif  // HWY_ONCE
