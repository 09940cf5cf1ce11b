#include "cache/check_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "kvquant/error.h"
#include "ops/rows.h"

namespace kvquant {
namespace {

// The largest magnitude that a side stores without becoming infinite. Rotation may make a key
// sqrt(2) times as large before it is rounded.
double largest_value(const SidePlan& plan) {
  constexpr double kMaxHalf = 65504, kMaxBFloat16 = 0x1.FEp127;
  if (plan.nuq) {  // what is rotated may gather in one channel
    if (plan.nuq->rope != nullptr) return plan.nuq->largest_value / std::sqrt(2.0);
    return plan.nuq->hadamard ? kMaxHalf / std::sqrt(plan.nuq->shape.head_dim)
                              : plan.nuq->largest_value;
  }
  const double largest = plan.dense->type == DenseType::kF16 ? kMaxHalf : kMaxBFloat16;
  return plan.dense->side == KvSide::kKey ? largest / std::sqrt(2.0) : largest;
}

// Throws if row [head_dim], which is that of a token and a KV head, can't be stored.
void check_row(std::span<const float> row, float largest, const ChunkName& name, int64_t token,
               int64_t head) {
  const auto bad =
      std::find_if(row.begin(), row.end(), [&](float x) { return !(std::abs(x) <= largest); });
  if (bad == row.end()) return;
  const std::string rule = std::isfinite(*bad)
                               ? fmt::format("larger than {} can't be stored", largest)
                               : std::string("not finite");
  throw FormatError(
      fmt::format("cache: layer {}, KV head {}: {} {} of token {} of the chunk, channel {}: {}",
                  name.layer, head, name.side, *bad, token, bad - row.begin(), rule));
}

}  // namespace

void check_values(TensorView<const float, 3> x, const SidePlan& plan, const ChunkName& name,
                  ThreadPool& pool) {
  const auto largest = static_cast<float>(largest_value(plan));
  std::atomic<bool> is_bad = false;
  for_row_ranges(x.shape[0], pool, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) {
      for (int64_t h = 0; h < x.shape[1]; ++h) {
        if (!are_within(x.row(t, h), largest)) is_bad = true;
      }
    }
  });
  if (!is_bad) return;
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    for (int64_t h = 0; h < x.shape[1]; ++h) check_row(x.row(t, h), largest, name, t, h);
  }
}

}  // namespace kvquant
