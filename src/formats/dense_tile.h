// The tile of an uncompressed cache: 64 tokens of one KV head, in the layout that matrix units and
// dot-product instructions read without shuffles. The element type is Half, BFloat16 or float.
//
//   keys    element (token t, channel c) at  (c / 2) * 128 + t * 2 + c % 2       channel-pair-major
//   values  element (token t, channel c) at  ((t / 2) * head_dim + c) * 2 + t % 2  token-pair-major
//
// A tile has 64 * head_dim elements on each side, whatever the number of tokens in use; unused ones
// are zero. head_dim is a multiple of 8.
#pragma once

#include <cstdint>

namespace kvquant {

inline constexpr int kTileTokens = 64;

enum class DenseType { kF16, kBF16, kF32 };

constexpr int64_t element_bytes(DenseType type) { return type == DenseType::kF32 ? 4 : 2; }

constexpr int64_t key_index(int64_t token, int64_t channel) {
  return (channel / 2) * (2 * kTileTokens) + token * 2 + channel % 2;
}
constexpr int64_t value_index(int64_t token, int64_t channel, int64_t head_dim) {
  return ((token / 2) * head_dim + channel) * 2 + token % 2;
}

}  // namespace kvquant
