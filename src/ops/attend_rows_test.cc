// Attention over rows of fp16 whose keys are before RoPE: every backend against the reference,
// error at most twice that of a plain loop over the widened rows in the same precision; and what
// must hold exactly.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "ops/attend.h"
#include "ops/attend_coded_test_data.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::composed_angle;
using testing::ErrorCheck;
using testing::fast_variants;
using testing::MixedJob;
using testing::only;
using testing::shape_of;
using testing::TestCodedRun;
using testing::TestJob;
using testing::TestRandom;
using testing::TestTiles;

constexpr Half kNan{0x7E00};

// Rows of two heads, of which the last is read: the other one's numbers are NaN, and nothing is
// behind the last row.
class TestRowsRun {
 public:
  TestRowsRun(const RopeTable& rope, int64_t num_tokens, int64_t first_position, TestRandom& random)
      : rope_(&rope),
        num_tokens_(num_tokens),
        first_position_(first_position),
        keys_(static_cast<size_t>(num_tokens * 2 * rope.head_dim()), kNan),
        values_(keys_),
        dense_(DenseType::kF32, num_tokens, rope.head_dim()) {
    for (int64_t token = 0; token < num_tokens; ++token) fill_token(token, random);
  }

  AttendRun run() const {
    AttendRun run;
    run.key_rows = keys_.data() + rope_->head_dim();
    run.value_rows = values_.data() + rope_->head_dim();
    run.row_stride = 2 * rope_->head_dim();
    run.rope = rope_;
    run.num_tokens = num_tokens_;
    run.first_position = first_position_;
    return run;
  }
  // Rotated (R_n as rope.h composes it) in f32.
  AttendRun dense_run() const { return dense_.run(first_position_); }

 private:
  void fill_token(int64_t token, TestRandom& random) {
    const int64_t head_dim = rope_->head_dim(), half = head_dim / 2, t = token % kTileTokens;
    Half* key = keys_.data() + (2 * token + 1) * head_dim;
    Half* value = values_.data() + (2 * token + 1) * head_dim;
    for (int64_t c = 0; c < head_dim; ++c) {
      key[c] = to_half(random.heavy_tailed());
      value[c] = to_half(random.heavy_tailed());
      dense_.set_value(token, c, to_float(value[c]));
    }
    for (int64_t c = 0; c < half; ++c) {
      const auto [cos, sin] = composed_angle(*rope_, first_position_ + token - t, t, c);
      const float a = to_float(key[c]), b = to_float(key[c + half]);
      dense_.set_key(token, c, a * cos - b * sin);
      dense_.set_key(token, c + half, b * cos + a * sin);
    }
  }

  const RopeTable* rope_;
  int64_t num_tokens_;
  int64_t first_position_;
  std::vector<Half> keys_, values_;
  TestTiles dense_;
};

class AttendRowsSweep : public ::testing::TestWithParam<int64_t> {};

TEST_P(AttendRowsSweep, IsAsAccurateAsThePlainLoop) {
  const int64_t head_dim = GetParam();
  TestRandom random(static_cast<uint64_t>(head_dim));
  const RopeTable rope(head_dim, 1300, 10000);
  for (const int64_t length : {1, 2, 3, 15, 16, 17, 33, 63, 64, 65, 127, 200}) {
    ErrorCheck check(shape_of(head_dim, 1), fast_variants());
    for (int repeat = 0; repeat < (length < 16 ? 8 : 2); ++repeat) {
      const int64_t first = random.below(2) == 0 ? 0 : random.below(1000);
      const TestRowsRun rows(rope, length, first, random);
      for (const int64_t group : {1, 3, 4, 8}) {
        const int64_t queries = 1 + random.below(3);
        check.set_group(group);
        const int64_t position = first + length + 4 - queries;
        check.add(only(rows).test(shape_of(head_dim, group), queries, position, random));
      }
    }
    check.expect_within_twice_naive(std::to_string(length) + " tokens");
  }
}

TEST_P(AttendRowsSweep, IsAsAccurateAsThePlainLoopInPrefill) {
  const int64_t head_dim = GetParam();
  TestRandom random(static_cast<uint64_t>(head_dim) + 1);
  const RopeTable rope(head_dim, 1200, 500000);
  const TestRowsRun rows(rope, 70, 1000, random);
  ErrorCheck check(shape_of(head_dim, 3), fast_variants());
  check.add(only(rows).test(shape_of(head_dim, 3), 40, 1030, random));
  check.expect_within_twice_naive("40 queries");
}

INSTANTIATE_TEST_SUITE_P(HeadDims, AttendRowsSweep, ::testing::Values(8, 16, 24, 64, 80, 128, 256),
                         [](const auto& info) { return "HeadDim" + std::to_string(info.param); });

// As a cache lays a sequence out: sinks, codes, window, the last chunk.
TEST(AttendRows, AreMixedWithCodesAndTiles) {
  TestRandom random(31);
  const RopeTable rope(64, 700, 10000);
  const TestRowsRun sinks(rope, 4, 0, random), window(rope, 100, 324, random);
  const TestRowsRun staged(rope, 20, 424, random);
  const TestCodedRun coded({4, 3, 1, 1}, rope, 320, 4, random);
  TestTiles tile(DenseType::kF16, 30, 64);
  tile.fill(random);
  MixedJob job;
  job.add(sinks);
  job.add(coded.run(), coded.dense_run());
  job.add(window);
  job.limit_last(0, 80);
  job.add(staged);
  job.add(tile.run(444), tile.run(444));
  for (const int64_t group : {1, 3}) {
    ErrorCheck check(shape_of(64, group), fast_variants());
    for (const int64_t queries : {1, 2, 20, 50}) {
      check.add(job.test(shape_of(64, group), queries, 474 - queries, random));
    }
    check.expect_within_twice_naive("group " + std::to_string(group));
  }
}

TEST(AttendRows, ResultsAreTheSameToTheBitAtOneAndThreeThreadsAndGapsAreUntouched) {
  TestRandom random(32);
  const AttendShape shape = shape_of(80, 3);
  const RopeTable rope(80, 1300, 10000);
  const TestRowsRun rows(rope, 1100, 4, random);
  for (const int64_t queries : {1, 2, 60}) {
    const TestJob test = only(rows).test(shape, queries, 1104 - queries, random);
    expect_same_bits_at_any_threads(shape, test);
  }
}

TEST(AttendRows, EveryInstructionSetMatchesTheReference) {
  TestRandom random(33);
  const RopeTable rope(40, 200, 10000);
  const TestRowsRun rows(rope, 130, 4, random);
  expect_every_instruction_set_matches(shape_of(40, 3), only(rows), 134, random);
}

TEST(AttendRows, RefusesRunsThatDoNotFit) {
  TestRandom random(34);
  ThreadPool pool(1);
  const RopeTable rope(16, 300, 10000), other_rope(32, 300, 10000);
  const TestRowsRun rows(rope, 200, 4, random);
  const TestCodedRun coded({4, 4}, rope, 64, 4, random);
  const TestJob test = only(rows).test(shape_of(16, 2), 2, 200, random);
  std::vector<float> out;
  const auto call = [&](auto&& change) {
    AttendRun run = rows.run();
    change(run);
    AttendJob job = test.job(out);
    job.runs = {&run, 1};
    attend(shape_of(16, 2), {&job, 1}, Precision::kF32, pool);
  };
  EXPECT_NO_THROW(call([](AttendRun&) {}));
  const auto refuses = [&](auto&& change) { EXPECT_THROW(call(change), std::invalid_argument); };
  refuses([](AttendRun& run) { run.value_rows = nullptr; });
  refuses([](AttendRun& run) { run.row_stride = 15; });
  refuses([](AttendRun& run) { run.rope = nullptr; });
  refuses([&](AttendRun& run) { run.rope = &other_rope; });
  refuses([](AttendRun& run) { run.first_position = 101; });
  refuses([](AttendRun& run) { run.num_tokens = -1; });
  refuses([&](AttendRun& run) {  // both
    run.coded_keys = &coded.keys->side;
    run.coded_values = &coded.values->side;
  });
}

}  // namespace
}  // namespace kvquant
