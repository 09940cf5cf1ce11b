// Conversions for numbers that are known to be finite and within the range of fp16, without
// branches: loops over them vectorise. The bits are those of half.h.
#pragma once

#include <bit>
#include <cstdint>

#include "base/half.h"

namespace kvquant {

// Requires |x| <= 65504 after rounding.
constexpr Half finite_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t normal = ((magnitude + 0xFFFu + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t is_normal = 0u - static_cast<uint32_t>(magnitude >= 0x38800000u);
  const uint32_t rounded = (normal & is_normal) | (subnormal & ~is_normal);
  return {static_cast<uint16_t>(rounded | (bits >> 16 & 0x8000u))};
}

constexpr float finite_to_float(Half x) {
  const uint32_t magnitude = (x.bits & 0x7FFFu) << 13, normal = magnitude + (112u << 23);
  constexpr uint32_t kUnit = 113u << 23;  // the smallest normal fp16 number
  const auto subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude + kUnit) -
                                                 std::bit_cast<float>(kUnit));
  const uint32_t is_normal = 0u - static_cast<uint32_t>(magnitude >= 1u << 23);
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  return std::bit_cast<float>((normal & is_normal) | (subnormal & ~is_normal) | sign);
}

}  // namespace kvquant
