// Attention over coded values behind dense keys, which may begin anywhere in their first tile.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/walsh_hadamard.h"
#include "ops/attend.h"
#include "ops/attend_coded_test_data.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::ErrorCheck;
using testing::expect_every_instruction_set_matches;
using testing::expect_same_bits_at_any_threads;
using testing::fast_variants;
using testing::MixedJob;
using testing::only;
using testing::shape_of;
using testing::TestCodec;
using testing::TestCodedSide;
using testing::TestRandom;
using testing::TestTiles;

struct Keys {
  DenseType type;
  int64_t offset;
};
constexpr Keys kKeys[] = {{DenseType::kF16, 0},
                          {DenseType::kF16, 4},
                          {DenseType::kBF16, 0},
                          {DenseType::kBF16, 63},
                          {DenseType::kF32, 17}};

// The same tokens with every value decoded, as dense f32 tiles, are dense_run().
class TestHalfCodedRun {
 public:
  TestHalfCodedRun(const TestCodec& codec, Keys keys, int64_t head_dim, int64_t num_tokens,
                   int64_t first_position, TestRandom& random)
      : values_(
            std::make_unique<TestCodedSide>(KvSide::kValue, codec, head_dim, num_tokens, random)),
        keys_(keys.type, keys.offset + num_tokens, head_dim),
        decoded_(DenseType::kF32, num_tokens, head_dim),
        offset_(keys.offset),
        num_tokens_(num_tokens),
        first_position_(first_position) {
    for (int64_t t = -offset_; t < num_tokens; ++t) {
      for (int64_t c = 0; c < head_dim; ++c) {
        const float x = t < 0 ? 3000.0f : random.heavy_tailed();
        keys_.set_key(offset_ + t, c, x);
        if (t >= 0) decoded_.set_key(t, c, as_stored(x, keys.type));
      }
    }
    std::vector<double> row(static_cast<size_t>(head_dim));
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t c = 0; c < head_dim; ++c) row[static_cast<size_t>(c)] = values_->stored(t, c);
      if (codec.hadamard) walsh_hadamard(row.data(), 1, head_dim);
      for (int64_t c = 0; c < head_dim; ++c) {
        decoded_.set_value(t, c, static_cast<float>(row[static_cast<size_t>(c)]));
      }
    }
  }

  AttendRun run() const {
    AttendRun run = keys_.run(first_position_);
    run.value_tiles = {};
    run.key_offset = offset_;
    run.coded_values = &values_->side;
    run.num_tokens = num_tokens_;
    return run;
  }
  AttendRun dense_run() const { return decoded_.run(first_position_); }

 private:
  static float as_stored(float x, DenseType type) {
    if (type == DenseType::kF16) return round_to_half(x);
    return type == DenseType::kBF16 ? round_to_bfloat16(x) : x;
  }
  std::unique_ptr<TestCodedSide> values_;
  TestTiles keys_, decoded_;
  int64_t offset_, num_tokens_, first_position_;
};

TestCodec codec_of(int bits, int outliers, bool hadamard) {
  return {.value_bits = bits, .value_outliers = outliers, .hadamard = hadamard};
}

TEST(AttendHalfCoded, IsAsAccurateAsThePlainLoop) {
  TestRandom random(41);
  for (const int64_t head_dim : {16, 40, 64, 128}) {
    const bool rotates = head_dim != 40;
    for (const Keys& keys : kKeys) {
      ErrorCheck check(shape_of(head_dim, 1));
      for (const TestCodec& codec :
           {codec_of(8, 0, false), codec_of(4, 0, rotates), codec_of(4, 1, false),
            codec_of(3, 1, false), codec_of(2, 0, rotates)}) {
        const TestHalfCodedRun run(codec, keys, head_dim, 70 + random.below(300), 4, random);
        TestTiles exact(DenseType::kF32, 90, head_dim);
        exact.fill(random);
        MixedJob job;
        job.add(exact.run(600));
        job.add(run);
        for (const int64_t group : {1, 3, 8}) {
          check.set_group(group);
          check.add(job.test(shape_of(head_dim, group), group == 3 ? 30 : 1, 690, random));
        }
      }
      check.expect_within_twice_naive("head_dim " + std::to_string(head_dim));
    }
  }
}

TEST(AttendHalfCoded, WindowsEndAnywhere) {
  TestRandom random(42);
  for (const Keys& keys : kKeys) {
    const TestHalfCodedRun run(codec_of(4, 0, true), keys, 32, 600, 10, random);
    ErrorCheck check(shape_of(32, 2));
    for (const int64_t recent : {0, 1, 63, 64, 65, 199, 1000}) {
      MixedJob job = only(run);
      job.limit_last(recent, recent + 333);
      for (const int64_t queries : {1, 4, 70}) {
        check.add(job.test(shape_of(32, 2), queries, 600, random));
      }
    }
    check.expect_within_twice_naive("windows");
  }
}

TEST(AttendHalfCoded, AnyNumberOfThreadsGivesTheSameBits) {
  TestRandom random(43);
  const TestHalfCodedRun run(codec_of(8, 0, false), kKeys[1], 64, 2500, 0, random);
  for (const int64_t queries : {1, 2, 60}) {
    expect_same_bits_at_any_threads(shape_of(64, 3),
                                    only(run).test(shape_of(64, 3), queries, 2440, random));
  }
}

TEST(AttendHalfCoded, EveryInstructionSetMatches) {
  TestRandom random(44);
  for (const Keys& keys : kKeys) {
    const TestHalfCodedRun run(codec_of(3, 2, true), keys, 64, 130, 0, random);
    expect_every_instruction_set_matches(shape_of(64, 2), only(run), 130, random);
  }
}

}  // namespace
}  // namespace kvquant
