// Dense tiles and queries filled with reproducible numbers, for the tests of attention.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/half.h"
#include "ops/attend.h"

namespace kvquant::testing {

// A small generator of its own, so that the numbers are the same with every standard library.
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(bound));
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // [0, 1)
  double normal() {
    return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
  }
  // Normal, but one value in 64 is eight times as large, as in the keys of language models.
  float heavy_tailed() { return static_cast<float>(normal() * (below(64) == 0 ? 8 : 1)); }

 private:
  uint64_t state_;
};

// Keys and values of num_tokens tokens in tiles, as attention reads them.
class TestTiles {
 public:
  TestTiles(DenseType type, int64_t num_tokens, int64_t head_dim)
      : type_(type), num_tokens_(num_tokens), head_dim_(head_dim) {
    const int64_t num_tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
    const int64_t tile_bytes = kTileTokens * head_dim * element_bytes(type);
    memory_ = std::make_unique<Buffer<std::byte>>(2 * num_tiles * tile_bytes);
    for (int64_t i = 0; i < num_tiles; ++i) {
      key_tiles_.push_back(memory_->data() + 2 * i * tile_bytes);
      value_tiles_.push_back(memory_->data() + (2 * i + 1) * tile_bytes);
    }
  }

  void set_key(int64_t token, int64_t channel, float x) {
    store(key_tiles_[static_cast<size_t>(token / kTileTokens)],
          key_index(token % kTileTokens, channel), x);
  }
  void set_value(int64_t token, int64_t channel, float x) {
    store(value_tiles_[static_cast<size_t>(token / kTileTokens)],
          value_index(token % kTileTokens, channel, head_dim_), x);
  }
  void fill(TestRandom& random) {
    for (int64_t token = 0; token < num_tokens_; ++token) {
      for (int64_t c = 0; c < head_dim_; ++c) {
        set_key(token, c, random.heavy_tailed());
        set_value(token, c, random.heavy_tailed());
      }
    }
  }

  AttendRun run(int64_t first_position = 0) const {
    AttendRun run;
    run.type = type_;
    run.key_tiles = key_tiles_;
    run.value_tiles = value_tiles_;
    run.num_tokens = num_tokens_;
    run.first_position = first_position;
    return run;
  }

 private:
  void store(const void* tile, int64_t index, float x) {
    void* to = const_cast<void*>(tile);  // memory_ owns it
    switch (type_) {
      case DenseType::kF16: static_cast<Half*>(to)[index] = to_half(x); break;
      case DenseType::kBF16: static_cast<BFloat16*>(to)[index] = to_bfloat16(x); break;
      case DenseType::kF32: static_cast<float*>(to)[index] = x; break;
    }
  }

  DenseType type_;
  int64_t num_tokens_;
  int64_t head_dim_;
  std::unique_ptr<Buffer<std::byte>> memory_;
  std::vector<const void*> key_tiles_;
  std::vector<const void*> value_tiles_;
};

inline float tile_element(const AttendRun& run, const void* tile, int64_t index) {
  switch (run.type) {
    case DenseType::kF16: return to_float(static_cast<const Half*>(tile)[index]);
    case DenseType::kBF16: return to_float(static_cast<const BFloat16*>(tile)[index]);
    case DenseType::kF32: return static_cast<const float*>(tile)[index];
  }
  return 0;
}

// Cos and sin of token t of a tile and a pair of channels, in f32 as rope.h composes them.
inline std::pair<float, float> composed_angle(const RopeTable& rope, int64_t tile_position,
                                              int64_t t, int64_t pair) {
  const int64_t middle = tile_position + RopeTiles::kMiddle, at = pair * kTileTokens + t;
  const float middle_cos = rope.cos(middle)[pair], middle_sin = rope.sin(middle)[pair];
  const float tile_cos = rope.tiles().tile_cos[at], tile_sin = rope.tiles().tile_sin[at];
  return {middle_cos * tile_cos - middle_sin * tile_sin,
          middle_sin * tile_cos + middle_cos * tile_sin};
}

}  // namespace kvquant::testing
