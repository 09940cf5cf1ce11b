// Codecs of the tests of attention over codes.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "formats/kv_block.h"
#include "formats/nuq_codebook.h"
#include "ops/attend_test_cache.h"

namespace kvquant::testing {

struct TestCodec {
  int key_bits = 4;
  int value_bits = 4;    // kLatentBits: latents of fp16
  int key_outliers = 0;  // percent
  int value_outliers = 0;
  bool hadamard = false;   // of values; head_dim is a power of two
  bool latents = false;    // values are
  bool key_tiles = false;  // latents of fp16 lie in key tiles
  CodeBands bands{};       // of latents; value_bits is 8

  std::string name() const {
    return fmt::format("K{}p{}{}{}p{}", key_bits, key_outliers, hadamard ? "VHad" : "V", value_bits,
                       value_outliers);
  }
};

// Ascending levels in [-1, 1] that are nowhere evenly spaced; 256 uniform ones for 8 bits.
inline NuqCodebook test_codebook(int bits, TestRandom& random) {
  if (bits == kLatentBits) return {};
  if (bits == kByteCodeBits) return make_uniform_codebook(bits);
  const int count = 1 << bits;
  std::vector<float> levels;
  for (int i = 0; i < count; ++i) {
    const double x = (2 * i + 0.2 + 1.6 * random.uniform()) / count - 1;
    levels.push_back(static_cast<float>(x * std::sqrt(std::abs(x))));
  }
  return make_codebook(levels);
}

}  // namespace kvquant::testing
