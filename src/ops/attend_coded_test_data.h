// Random coded runs as the cache would hold them, and the same tokens decoded: for the tests of
// attention over codes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/walsh_hadamard.h"
#include "ops/attend_coded_test_side.h"

namespace kvquant::testing {

// Tokens coded on both sides, and the same tokens as dense f32 tiles.
class TestCodedRun {
 public:
  TestCodedRun(const TestCodec& codec, const RopeTable& rope, int64_t num_tokens,
               int64_t first_position, TestRandom& random)
      : keys(std::make_unique<TestCodedSide>(KvSide::kKey, codec, rope.head_dim(), num_tokens,
                                             random)),
        values(std::make_unique<TestCodedSide>(KvSide::kValue, codec, rope.head_dim(), num_tokens,
                                               random)),
        rope_(&rope),
        num_tokens_(num_tokens),
        first_position_(first_position),
        dense_(DenseType::kF32, num_tokens, rope.head_dim()) {
    for (int64_t token = 0; token < num_tokens; ++token) decode_token(token);
  }

  AttendRun run() const {
    AttendRun run;
    run.coded_keys = &keys->side;
    run.coded_values = &values->side;
    run.rope = rope_;
    run.num_tokens = num_tokens_;
    run.first_position = first_position_;
    return run;
  }
  // Decoded, rotated (R_n as rope.h composes it) and transformed in f32.
  AttendRun dense_run() const { return dense_.run(first_position_); }

  std::unique_ptr<TestCodedSide> keys, values;

 private:
  void decode_token(int64_t token) {
    const int64_t head_dim = rope_->head_dim(), half = head_dim / 2;
    const int64_t t = token % kTileTokens;
    for (int64_t c = 0; c < half; ++c) {
      const auto [cos, sin] = composed_angle(*rope_, first_position_ + token - t, t, c);
      const auto a = static_cast<float>(keys->stored(token, c));
      const auto b = static_cast<float>(keys->stored(token, c + half));
      dense_.set_key(token, c, a * cos - b * sin);
      dense_.set_key(token, c + half, b * cos + a * sin);
    }
    std::vector<float> value(static_cast<size_t>(head_dim));
    for (int64_t c = 0; c < head_dim; ++c) value[c] = static_cast<float>(values->stored(token, c));
    if (values->side.hadamard) walsh_hadamard(value.data(), 1, head_dim);
    for (int64_t c = 0; c < head_dim; ++c) dense_.set_value(token, c, value[c]);
  }

  const RopeTable* rope_;
  int64_t num_tokens_;
  int64_t first_position_;
  TestTiles dense_;
};

}  // namespace kvquant::testing
