// Attention over coded runs: every backend against the reference, error at most twice that of a
// plain loop over decoded values in the same precision; and what must hold exactly.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

#include "ops/attend.h"
#include "ops/attend_coded_test_data.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::ErrorCheck;
using testing::fast_variants;
using testing::kGap;
using testing::kGuard;
using testing::max_abs;
using testing::max_difference;
using testing::MixedJob;
using testing::only;
using testing::run_job;
using testing::shape_of;
using testing::TestCodec;
using testing::TestCodedRun;
using testing::TestJob;
using testing::TestRandom;
using testing::TestTiles;
using testing::Variant;

constexpr TestCodec kCodecs[] = {
    {2, 2},
    {2, 2, 1, 1},
    {3, 3},
    {3, 3, 1, 1},
    {4, 4},
    {4, 4, 1, 1},
    {8, 8},
    {8, 8, 1, 1},
    {4, 4, 5, 5},
    {4, 4, 1, 0, true},
    {3, 2, 0, 5},
    {2, 3, 5, 0},
    {2, 4, 1, 1, true},
};

bool fits(const TestCodec& codec, int64_t head_dim) {
  return !codec.hadamard || std::has_single_bit(static_cast<uint64_t>(head_dim));
}

class AttendCodedSweep : public ::testing::TestWithParam<std::tuple<TestCodec, int64_t>> {};

// One token has large errors of its own, so it is compared apart.
TEST_P(AttendCodedSweep, IsAsAccurateAsThePlainLoop) {
  const auto [codec, head_dim] = GetParam();
  TestRandom random(static_cast<uint64_t>(head_dim));
  const RopeTable rope(head_dim, 300, 10000);
  const bool many_outliers = std::max(codec.key_outliers, codec.value_outliers) > 1;
  const int64_t sparsity = head_dim / (many_outliers ? 30 : 40) + 1;  // time
  int64_t turn = 0;
  ErrorCheck one_token(shape_of(head_dim, 1), fast_variants());
  ErrorCheck more_tokens(shape_of(head_dim, 1), fast_variants());
  for (int64_t length : {1, 1, 1, 1, 1, 1, 1, 1, 63, 64, 65, 200, 200}) {
    const TestCodedRun run(codec, rope, length, length % 2 == 0 ? 4 : 0, random);
    ErrorCheck& check = length == 1 ? one_token : more_tokens;
    for (int64_t group : {1, 3, 4, 8}) {
      for (int64_t queries : {1, 2}) {
        if (length > 1 && ++turn % sparsity != 0) continue;
        const int64_t position = std::max<int64_t>(0, length + 4 - queries);
        check.set_group(group);
        check.add(only(run).test(shape_of(head_dim, group), queries, position, random));
      }
    }
  }
  one_token.expect_within_twice_naive("one token");
  more_tokens.expect_within_twice_naive("63 to 200 tokens");
}

TEST_P(AttendCodedSweep, IsAsAccurateAsThePlainLoopInPrefill) {
  const auto [codec, head_dim] = GetParam();
  TestRandom random(static_cast<uint64_t>(head_dim) + 1);
  const RopeTable rope(head_dim, 1200, 500000);
  const int64_t group = head_dim == 16 ? 8 : head_dim == 24 ? 3 : 1;
  ErrorCheck check(shape_of(head_dim, group), fast_variants());
  for (int i = 0; i < 6; ++i) {  // sums of few errors say little
    const TestCodedRun run(codec, rope, 70, 1000, random);
    check.add(only(run).test(shape_of(head_dim, group), 40, 1030, random));
  }
  check.expect_within_twice_naive("40 queries");
}

std::vector<std::tuple<TestCodec, int64_t>> sweep_cases() {
  std::vector<std::tuple<TestCodec, int64_t>> cases;
  for (const TestCodec& codec : kCodecs) {
    for (int64_t head_dim : {16, 24, 64, 80, 128, 256}) {
      if (fits(codec, head_dim)) cases.emplace_back(codec, head_dim);
    }
  }
  return cases;
}

std::string sweep_name(const ::testing::TestParamInfo<AttendCodedSweep::ParamType>& info) {
  const auto [codec, head_dim] = info.param;
  return codec.name() + "HeadDim" + std::to_string(head_dim);
}

INSTANTIATE_TEST_SUITE_P(CodecsAndHeadDims, AttendCodedSweep, ::testing::ValuesIn(sweep_cases()),
                         sweep_name);

TEST(AttendCoded, LongContextsInSeveralSpansMatchTheReference) {
  TestRandom random(21);
  const RopeTable rope(64, 2200, 10000);
  for (const TestCodec& codec : {TestCodec{3, 3, 1, 1}, TestCodec{4, 4, 1, 0, true}}) {
    const TestCodedRun run(codec, rope, 1100, 1000, random);
    for (int64_t group : {1, 4}) {
      for (int64_t queries : {1, 2}) {
        ErrorCheck check(shape_of(64, group), fast_variants());
        for (int repeat = 0; repeat < 10; ++repeat) {
          check.add(only(run).test(shape_of(64, group), queries, 2100 - queries, random));
        }
        check.expect_within_twice_naive(codec.name() + ", group " + std::to_string(group));
      }
    }
  }
}

// Divisors of a file may order them in any way; slow pairs are read by shortcuts.
TEST(AttendCoded, FrequenciesNeedNotFall) {
  TestRandom random(27);
  std::vector<double> mixed(32, 1e-4);
  for (const size_t fast : {1, 7, 12, 31}) mixed[fast] = 1;
  mixed[20] = 0.02;
  for (const auto& frequencies : {mixed, std::vector<double>(32, 3)}) {
    const RopeTable rope(200, frequencies);
    const TestCodedRun run({4, 4, 1, 1}, rope, 130, 20, random);
    for (const auto& [queries, repeats] : {std::pair(1, 10), std::pair(2, 5), std::pair(20, 1)}) {
      ErrorCheck check(shape_of(64, 1), fast_variants());
      for (int repeat = 0; repeat < repeats; ++repeat) {
        check.add(only(run).test(shape_of(64, 1), queries, 160 - queries, random));
      }
      check.expect_within_twice_naive(std::to_string(queries) + " queries");
    }
  }
}

TEST(AttendCoded, SinksBeforeAndATailBehindAreMixedIn) {
  TestRandom random(22);
  const RopeTable rope(64, 400, 10000);
  for (const TestCodec& codec : kCodecs) {
    TestTiles sinks(DenseType::kF32, 4, 64);
    TestTiles tail(DenseType::kF32, 64, 64);
    sinks.fill(random);
    tail.fill(random);
    const TestCodedRun coded(codec, rope, 198, 4, random);
    MixedJob job;
    job.add(sinks.run());
    job.add(coded);
    job.limit_last(32, INT64_MAX);  // the tail has the last 32 exactly
    job.add(tail.run(170));
    job.limit_last(0, 32);
    ErrorCheck check(shape_of(64, 2), fast_variants());
    for (int64_t queries : {1, 2, 20}) {
      check.add(job.test(shape_of(64, 2), queries, 202 - queries, random));
    }
    check.expect_within_twice_naive(codec.name());
  }
}

TEST(AttendCoded, RandomRunsWithWindowsMatchTheReference) {
  TestRandom random(23);
  for (int repeat = 0; repeat < 16; ++repeat) {
    const int64_t head_dim = 8 * (1 + random.below(10));
    const AttendShape shape = shape_of(head_dim, 1 + random.below(6));
    const RopeTable rope(head_dim, 700, 10000);
    TestCodec codec = kCodecs[repeat % std::size(kCodecs)];
    if (!fits(codec, head_dim)) codec.hadamard = false;
    ErrorCheck check(shape, fast_variants());
    for (int i = 0; i < 4; ++i) {  // sums of few errors say little
      std::vector<TestCodedRun> coded;
      TestTiles dense(i % 2 == 0 ? DenseType::kF16 : DenseType::kF32, random.below(100), head_dim);
      dense.fill(random);
      MixedJob job;
      job.add(dense.run(random.below(300)));
      for (int run = 0; run < 2; ++run) {
        coded.emplace_back(codec, rope, random.below(180), random.below(300), random);
        job.add(coded.back());
        const int64_t min_lag = random.below(2) == 0 ? 0 : random.below(100) - 10;
        job.limit_last(min_lag, random.below(2) == 0 ? INT64_MAX : min_lag + random.below(200));
      }
      const int64_t queries = 1 + random.below(i % 2 == 0 ? 3 : 30);
      check.add(job.test(shape, queries, random.below(500), random));
    }
    check.expect_within_twice_naive("repeat " + std::to_string(repeat));
  }
}

TEST(AttendCoded, ResultsAreTheSameToTheBitAtOneAndThreeThreadsAndGapsAreUntouched) {
  TestRandom random(24);
  const AttendShape shape = shape_of(80, 3);
  const RopeTable rope(80, 1300, 10000);
  const TestCodedRun run({4, 3, 1, 1}, rope, 1100, 4, random);
  for (int64_t queries : {1, 2, 60}) {
    const TestJob test = only(run).test(shape, queries, 1104 - queries, random);
    expect_same_bits_at_any_threads(shape, test);
  }
}

// Only distances matter to rotated keys and queries.
TEST(AttendCoded, ShiftingAllPositionsChangesNextToNothing) {
  const AttendShape shape = shape_of(64, 4);
  const RopeTable rope(64, 1500, 10000);
  const auto shifted = [&](int64_t shift, const Variant& variant) {
    TestRandom random(25);  // the same numbers each time
    const TestCodedRun run({4, 4, 1, 1}, rope, 200, shift, random);
    TestJob test = only(run).test(shape, 3, shift + 197, random);
    for (int64_t i = 0; i < 3 * shape.group; ++i) {
      const int64_t position = shift + 197 + i / shape.group;
      float* query = test.query.data() + i / shape.group * (test.row_size + kGap) +
                     i % shape.group * shape.head_dim;
      rope_row(query, rope.cos(position), rope.sin(position), shape.head_dim);
    }
    return run_job(shape, test, variant);
  };
  for (const Variant& variant : fast_variants()) {
    if (variant.rounds()) continue;
    const auto here = shifted(0, variant);
    for (int64_t shift : {1, 37, 64, 1000}) {
      EXPECT_LE(max_difference(here, shifted(shift, variant)), 1e-5 * max_abs(here))
          << variant.name() << ", shift " << shift;
    }
  }
}

TEST(AttendCoded, AQueryThatSeesNothingGetsZeros) {
  TestRandom random(26);
  const AttendShape shape = shape_of(16, 2);
  const RopeTable rope(16, 300, 10000);
  const TestCodedRun run({4, 4, 1, 1}, rope, 70, 100, random);
  for (const Variant& variant : fast_variants()) {
    for (int64_t queries : {1, 2, 40}) {
      const auto out = run_job(shape, only(run).test(shape, queries, 50, random), variant);
      for (float x : out) EXPECT_TRUE(x == 0 || x == kGuard) << variant.name();
    }
  }
}

TEST(AttendCoded, EveryInstructionSetMatchesTheReference) {
  TestRandom random(27);
  const RopeTable rope(40, 200, 10000);
  const TestCodedRun run({3, 4, 1, 5}, rope, 130, 4, random);
  expect_every_instruction_set_matches(shape_of(40, 3), only(run), 134, random);
}

// Kernels may take cos and sin of small angles as short series. Here one pair of channels alone
// makes the scores, from bf16 numbers, and nothing hides what the series leave out: a wrong term
// changes weights by 20% and more; by 4% where products are of integers, which are finer.
void expect_each_pair_is_turned(int bits, float scale, double bound) {
  TestRandom random(27);
  const AttendShape shape = shape_of(128, 1);
  const RopeTable rope(128, 400, 10000);
  const TestCodedRun coded({bits, bits}, rope, 128, 64, random);
  ThreadPool pool(1);
  for (int64_t pair = 0; pair < 64; ++pair) {
    std::vector<Half> scales(128, to_half(0)), zeros(128, to_half(0));
    zeros[pair] = to_half(1);
    scales[pair] = to_half(scale);
    CodedSide keys = coded.keys->side;
    keys.scales = scales.data();
    keys.zeros = zeros.data();
    keys.segment_starts = {};
    keys.logit_bias = 0;
    AttendRun run = coded.run();
    run.coded_keys = &keys;
    for (int quarter = 0; quarter < 4; ++quarter) {
      TestJob test(shape, 1, 300, {run}, random);
      std::fill(test.query.begin(), test.query.end(), 0.0f);
      const double angle = 1.5707963 * quarter + rope.tiles().frequencies[pair] * 128;
      test.query[pair] = static_cast<float>(6 / shape.scale * std::cos(angle));
      test.query[pair + 64] = static_cast<float>(6 / shape.scale * std::sin(angle));
      std::vector<float> expected, out;
      const AttendJob reference = test.job(expected);
      attend(shape, {&reference, 1}, Precision::kF32, pool, Backend::kReference);
      for (const Variant& variant : fast_variants()) {
        const AttendJob job = test.job(out);
        attend(shape, {&job, 1}, variant.precision, pool, variant.backend);
        // Products on tensor cores are never of integers.
        const double coarse = is_cuda(variant.backend) ? std::max(bound, 0.08) : bound;
        const double allowed = variant.rounds() ? coarse : 1e-4;
        EXPECT_LE(max_difference(out, expected), allowed * max_abs(expected))
            << variant.name() << ", pair " << pair << ", quarter " << quarter;
      }
    }
  }
}

TEST(AttendCoded, EveryPairOfChannelsIsTurnedByItsAngle) {
  expect_each_pair_is_turned(4, 0, 0.08);
  expect_each_pair_is_turned(8, 0, 0.01);
  expect_each_pair_is_turned(8, 0.25f, 0.01);
}

// Keys of 8 bits whose mean is a thousand times their range: the integers that stand for both have
// to make room for the mean.
TEST(AttendCoded, MeansFarAboveTheRangeOfKeysAreKept) {
  TestRandom random(31);
  const AttendShape shape = shape_of(64, 1);
  const RopeTable rope(64, 400, 10000);
  const TestCodedRun coded({8, 8}, rope, 128, 64, random);
  std::vector<Half> scales(64, to_half(0.001f)), zeros(64, to_half(0));
  zeros[3] = to_half(10);
  zeros[20] = to_half(-1000);
  CodedSide keys = coded.keys->side;
  keys.scales = scales.data();
  keys.zeros = zeros.data();
  keys.segment_starts = {};
  AttendRun run = coded.run();
  run.coded_keys = &keys;
  TestJob test(shape, 1, 300, {run}, random);
  for (float& x : test.query) x = std::clamp(x, -1.0f, 1.0f) / 100;
  std::vector<float> expected, out;
  const AttendJob reference = test.job(expected);
  ThreadPool pool(1);
  attend(shape, {&reference, 1}, Precision::kF32, pool, Backend::kReference);
  for (const Variant& variant : fast_variants()) {
    const AttendJob job = test.job(out);
    attend(shape, {&job, 1}, variant.precision, pool, variant.backend);
    const double coarse = is_cuda(variant.backend) ? 0.02 : 0.01;
    const double allowed = variant.rounds() ? coarse : 1e-4;
    EXPECT_LE(max_difference(out, expected), allowed * max_abs(expected)) << variant.name();
  }
}

TEST(AttendCoded, TheBiasMovesWeightBetweenSegmentsAsInTheReference) {
  TestRandom random(29);
  const AttendShape shape = shape_of(80, 1);
  const RopeTable rope(80, 400, 10000);
  for (const int bits : {2, 3, 4, 8}) {
    const TestCodedRun run({bits, bits}, rope, 300, 0, random);
    run.values->mark_first_segment();
    const float factor = bits == 8 ? 2e7f : 1000.0f * static_cast<float>(1 << bits);
    for (int64_t queries : {1, 2, 3, 4, 5, 8, 20}) {
      TestJob test = only(run).test(shape, queries, 300, random);
      for (float& x : test.query) x = std::clamp(x, -1.0f, 1.0f);
      const auto log_odds = [&](const Variant& variant, float bias) {
        run.keys->side.logit_bias = bias;
        std::vector<double> odds;
        const auto out = run_job(shape, test, variant);
        for (size_t i = 0; i < out.size(); i += static_cast<size_t>(test.row_size + kGap)) {
          odds.push_back(std::log(out[i] / (1 - double{out[i]})));
        }
        return odds;
      };
      const Variant reference{Backend::kReference, Precision::kF32};
      const auto before = log_odds(reference, 0), after = log_odds(reference, factor);
      for (const Variant& variant : fast_variants()) {
        const auto here_before = log_odds(variant, 0), here = log_odds(variant, factor);
        for (size_t i = 0; i < here.size(); ++i) {
          const double shift = after[i] - before[i];
          EXPECT_NEAR(here[i] - here_before[i], shift, 0.02 * std::abs(shift) + 0.01)
              << variant.name() << ", " << bits << " bits, row " << i << " of " << queries;
        }
      }
    }
  }
}

TEST(AttendCoded, RefusesRunsThatDoNotFit) {
  TestRandom random(28);
  ThreadPool pool(1);
  const AttendShape shape = shape_of(16, 2);
  const RopeTable rope(16, 300, 10000);
  const RopeTable other_rope(32, 300, 10000);
  const TestCodedRun coded({4, 4, 1, 1}, rope, 200, 4, random);
  const TestJob test = only(coded).test(shape, 2, 200, random);
  std::vector<float> out;
  const auto call = [&](auto&& change) {
    CodedSide keys = coded.keys->side;
    CodedSide values = coded.values->side;
    AttendRun run = coded.run();
    run.coded_keys = &keys;
    run.coded_values = &values;
    change(run, keys, values);
    AttendJob job = test.job(out);
    job.runs = {&run, 1};
    attend(shape, {&job, 1}, Precision::kF32, pool);
  };
  EXPECT_NO_THROW(call([](auto&, auto&, auto&) {}));
  const auto refuses = [&](auto&& change) { EXPECT_THROW(call(change), std::invalid_argument); };
  refuses([](auto& run, auto&, auto&) { run.coded_values = nullptr; });
  refuses([](auto& run, auto&, auto&) { run.rope = nullptr; });
  refuses([&](auto& run, auto&, auto&) { run.rope = &other_rope; });
  refuses([](auto& run, auto&, auto&) { run.first_position = 101; });
  refuses([](auto& run, auto&, auto&) { run.first_position = -1; });
  refuses([](auto& run, auto&, auto&) { run.num_tokens = -1; });
  refuses([](auto& run, auto&, auto&) { run.num_tokens = 257; });  // a fifth tile
  refuses([](auto& run, auto& keys, auto& values) { run.coded_keys = &values, (void)keys; });
  refuses([](auto&, auto& keys, auto&) { keys.scales = nullptr; });
  refuses([](auto&, auto& keys, auto&) { keys.zeros = nullptr; });
  for (const bool of_keys : {true, false}) {
    const auto refuses_side = [&](auto&& change) {
      refuses([&](auto&, auto& keys, auto& values) { change(of_keys ? keys : values); });
    };
    refuses_side([](CodedSide& side) { side.codebook = nullptr; });
    refuses_side([](CodedSide& side) { side.shape.bits = 3; });
    refuses_side([](CodedSide& side) { side.shape.head_dim = 32; });
    refuses_side([](CodedSide& side) { side.head = 3; });
    refuses_side([](CodedSide& side) { side.head = -1; });
    refuses_side([](CodedSide& side) { side.shape.num_tiles = 0; });
    refuses_side([](CodedSide& side) { side.blocks = side.blocks.first(1); });
  }
}

}  // namespace
}  // namespace kvquant
