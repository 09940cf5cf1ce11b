#include "cache/padded_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>

#include "base/check.h"

namespace kvquant {
namespace {

TokenRange range_of_row(MaskView mask, int64_t row) {
  if (mask.data == nullptr) return {0, mask.shape[1]};
  TokenRange range;
  for (int64_t s = 0; s < mask.shape[1]; ++s) {
    const int bit = mask(row, s);
    if (bit > 1) {
      throw std::invalid_argument(
          fmt::format("attention_mask: row {} has {} at position {}, not 0 or 1", row, bit, s));
    }
    if (bit == 0) continue;
    if (range.count == 0) range.first = s;
    if (range.first + range.count != s) {
      throw std::invalid_argument(
          fmt::format("attention_mask: row {} has a hole at position {}: real tokens must be "
                      "consecutive",
                      row, range.first + range.count));
    }
    ++range.count;
  }
  return range;
}

bool all_finite(std::span<const float> row) {
  constexpr uint32_t kExponent = 0x7F800000;
  uint32_t bad = 0;
  for (const float x : row) bad |= (std::bit_cast<uint32_t>(x) & kExponent) == kExponent ? 1 : 0;
  return bad == 0;
}

}  // namespace

std::vector<TokenRange> token_ranges(MaskView mask) {
  check_arg(mask.shape[0] >= 0 && mask.shape[1] >= 0,
            fmt::format("attention_mask: [{}, {}] is no shape", mask.shape[0], mask.shape[1]));
  std::vector<TokenRange> ranges;
  for (int64_t row = 0; row < mask.shape[0]; ++row) ranges.push_back(range_of_row(mask, row));
  return ranges;
}

std::vector<TokenRange> token_ranges(const char* op, BatchView x, MaskView mask) {
  if (mask.data == nullptr && mask.shape[0] == 0) {
    return std::vector<TokenRange>(static_cast<size_t>(x.shape[0]), TokenRange{0, x.shape[2]});
  }
  check_arg(
      mask.shape[0] == x.shape[0] && mask.shape[1] == x.shape[2],
      fmt::format("{}: attention_mask [{}, {}] does not fit [{}, {}, {}, {}]", op, mask.shape[0],
                  mask.shape[1], x.shape[0], x.shape[1], x.shape[2], x.shape[3]));
  return token_ranges(mask);
}

void check_batch(const char* op, BatchView x) {
  const auto& s = x.shape;
  check_arg(
      s[0] >= 0 && s[1] > 0 && s[2] >= 0 && s[3] > 0,
      fmt::format("{}: [{}, {}, {}, {}] is no [batch, num_heads, seq_len, head_dim] with at least "
                  "one head and channel",
                  op, s[0], s[1], s[2], s[3]));
  int64_t room = int64_t{1} << 48;
  for (const int64_t size : s) room /= std::max<int64_t>(size, 1);
  check_arg(room > 0, fmt::format("{}: [{}, {}, {}, {}] has more than 2^48 elements", op, s[0],
                                  s[1], s[2], s[3]));
  if (s[0] == 0 || s[2] == 0) return;
  check_arg(x.data != nullptr, fmt::format("{}: the tensor has no data", op));
  check_arg(x.stride[3] == 1 || s[3] == 1,
            fmt::format("{}: the last dimension must have stride 1, it has {}", op, x.stride[3]));
}

void check_finite(const char* op, BatchView x, const std::vector<TokenRange>& ranges) {
  for (int64_t b = 0; b < x.shape[0]; ++b) {
    const TokenRange range = ranges[static_cast<size_t>(b)];
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      for (int64_t s = range.first; s < range.first + range.count; ++s) {
        const auto row = x.row(b, h, s);
        if (all_finite(row)) continue;
        size_t c = 0;
        while (std::isfinite(row[c])) ++c;
        throw std::invalid_argument(
            fmt::format("{}: batch {}, head {}, token {}, channel {} is {}, not finite", op, b, h,
                        s, c, row[c]));
      }
    }
  }
}

}  // namespace kvquant
