// Attention over values that are latents: the reference by algebra, the others by the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <vector>

#include "ops/attend.h"
#include "ops/attend_coded_test_data.h"
#include "ops/attend_latents_test_map.h"
#include "ops/attend_test_mix.h"

namespace kvquant {
namespace {

using testing::ErrorCheck;
using testing::expect_every_instruction_set_matches;
using testing::expect_same_bits_at_any_threads;
using testing::fast_variants;
using testing::LatentCodec;
using testing::max_abs;
using testing::max_difference;
using testing::MixedJob;
using testing::reference;
using testing::run_job;
using testing::shape_of;
using testing::TestCodec;
using testing::TestCodedRun;
using testing::TestCodedSide;
using testing::TestJob;
using testing::TestMap;
using testing::TestRandom;
using testing::TestTiles;
using testing::Variant;

// Tokens with values as latents, and the same with every value expanded, as dense f32 tiles. Keys
// are coded, or dense behind key_offset tokens that nobody may see.
class TestLatentRun {
 public:
  TestLatentRun(const TestMap& map, LatentCodec codec, int64_t num_tokens, int64_t first_position,
                TestRandom& random)
      : map_(map),
        codec_{.value_bits = codec.bits,
               .value_outliers = codec.outliers,
               .latents = true,
               .bands = codec.banded ? testing::test_bands(map.map.width, random) : CodeBands{}},
        values_(std::make_unique<TestCodedSide>(KvSide::kValue, codec_, map.map.width, num_tokens,
                                                random)),
        num_tokens_(num_tokens),
        first_position_(first_position),
        expanded_(DenseType::kF32, num_tokens, map.map.head_dim) {
    values_->side.latents = &map.map;
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t c = 0; c < map.map.head_dim; ++c) {
        expanded_.set_value(t, c, static_cast<float>(map.expanded(*values_, t, c)));
      }
    }
  }

  void use_dense_keys(DenseType type, int64_t key_offset, TestRandom& random) {
    key_offset_ = key_offset;
    const int64_t dim = map_.map.head_dim;
    keys_ = std::make_unique<TestTiles>(type, key_offset + num_tokens_, dim);
    for (int64_t t = -key_offset; t < num_tokens_; ++t) {
      for (int64_t c = 0; c < dim; ++c) {
        const float x = t < 0 ? 3000.0f : random.heavy_tailed();
        keys_->set_key(key_offset + t, c, x);
        const float stored = type == DenseType::kF16    ? round_to_half(x)
                             : type == DenseType::kBF16 ? round_to_bfloat16(x)
                                                        : x;
        if (t >= 0) expanded_.set_key(t, c, stored);
      }
    }
  }
  void use_coded_keys(const RopeTable& rope, TestRandom& random) {
    coded_ = std::make_unique<TestCodedRun>(TestCodec{3, 4, 1}, rope, num_tokens_, first_position_,
                                            random);
    const AttendRun dense = coded_->dense_run();
    for (int64_t t = 0; t < num_tokens_; ++t) {
      const auto* tile = static_cast<const float*>(dense.key_tiles[t / kTileTokens]);
      for (int64_t c = 0; c < map_.map.head_dim; ++c) {
        expanded_.set_key(t, c, tile[key_index(t % kTileTokens, c)]);
      }
    }
  }

  AttendRun run() const {
    AttendRun run = keys_ ? keys_->run(first_position_) : coded_->run();
    run.value_tiles = {};
    run.key_offset = key_offset_;
    run.coded_values = &values_->side;
    run.num_tokens = num_tokens_;
    return run;
  }
  AttendRun dense_run() const { return expanded_.run(first_position_); }

 private:
  const TestMap& map_;
  TestCodec codec_;
  std::unique_ptr<TestCodedSide> values_;
  std::unique_ptr<TestTiles> keys_;
  std::unique_ptr<TestCodedRun> coded_;
  int64_t key_offset_ = 0;
  int64_t num_tokens_, first_position_;
  TestTiles expanded_;
};

TEST(AttendLatentsReference, LateExpansionEqualsExpandingEveryValue) {
  TestRandom random(5);
  for (const int64_t rank : {1, 7, 16, 24}) {
    const TestMap map(rank, 24, random);
    for (const LatentCodec codec : {LatentCodec{16}, {8}, {4, 5}, {3}, {2, 2}, {8, 0, true}}) {
      TestLatentRun run(map, codec, 90, 7, random);
      run.use_dense_keys(DenseType::kF32, rank % 64, random);
      TestTiles exact(DenseType::kF32, 7, 24), tail(DenseType::kF32, 20, 24);
      exact.fill(random);
      tail.fill(random);
      MixedJob job;
      job.add(exact.run());
      job.add(run);
      job.add(tail.run(97));
      const TestJob test = job.test(shape_of(24, 2), 3, 110, random);
      const auto late = reference(shape_of(24, 2), test, false);
      const auto early = reference(shape_of(24, 2), test, true);
      EXPECT_LE(max_difference(late, early), 1e-6 * max_abs(early)) << rank << " " << codec.bits;
    }
  }
}

TEST(AttendLatentsReference, SumsByHand) {
  const float mean[8] = {1, 2, 3, 4, 5, 6, 7, 8}, decode[8] = {1, 0, 0, 0, 0, 0, 0, -1};
  const LatentMap map{1, 8, 8, mean, nullptr, decode};
  Buffer<Half> block(64 * 8);  // tokens 0 and 1 are 4 and 8
  block[value_index(0, 0, 8)] = to_half(4);
  block[value_index(1, 0, 8)] = to_half(8);
  std::byte* blocks[] = {reinterpret_cast<std::byte*>(block.data())};
  CodedSide values;
  values.shape = {KvSide::kValue, kLatentBits, false, 1, 8, 1, true};
  values.layout = kv_block_layout(values.shape);
  values.blocks = blocks;
  values.latents = &map;
  TestTiles keys(DenseType::kF32, 2, 8), exact(DenseType::kF32, 2, 8);
  for (int64_t c = 0; c < 8; ++c) exact.set_value(0, c, 10);
  AttendRun run = keys.run();
  run.value_tiles = {};
  run.coded_values = &values;
  const std::vector<AttendRun> runs = {run, exact.run(2)};
  const std::vector<float> query(8, 0.0f);
  std::vector<float> out(8);
  const AttendJob job{query.data(), out.data(), 8, 1, 3, runs};
  ThreadPool pool(1);
  std::vector<Backend> backends = available_backends();
  for (const Backend backend : cuda_backends()) backends.push_back(backend);
  for (const Backend backend : backends) {
    attend({8, 1, 1}, {&job, 1}, Precision::kF32, pool, backend);
    // Four tokens of weight 1/4: half of the mean, a quarter of 12 along the component and of 10.
    const float expected[8] = {6, 3.5, 4, 4.5, 5, 5.5, 6, 3.5};
    for (int c = 0; c < 8; ++c) EXPECT_NEAR(out[c], expected[c], 1e-6) << backend_name(backend);
  }
}

struct Keys {
  bool coded;
  DenseType type = DenseType::kF16;
  int64_t offset = 0;
};
constexpr Keys kKeys[] = {{true},
                          {false, DenseType::kF16, 0},
                          {false, DenseType::kF16, 4},
                          {false, DenseType::kBF16, 0},
                          {false, DenseType::kF32, 61},
                          {false, DenseType::kF32, 0}};

void set_keys(const Keys& keys, const RopeTable& rope, TestLatentRun& run, TestRandom& random) {
  keys.coded ? run.use_coded_keys(rope, random)
             : run.use_dense_keys(keys.type, keys.offset, random);
}

TEST(AttendLatents, AreAsAccurateAsThePlainLoop) {
  TestRandom random(9);
  for (const int64_t head_dim : {16, 64, 80, 128}) {
    const RopeTable rope(head_dim, 1500, 10000);
    const AttendShape shape = shape_of(head_dim, 1);
    for (const Keys& keys : kKeys) {
      ErrorCheck check(shape, fast_variants());
      for (const LatentCodec codec :
           {LatentCodec{16}, {8}, {4, 1}, {3}, {2}, {8, 0, true}, {8, 0, true}}) {
        const int64_t rank = 1 + random.below(head_dim);
        const TestMap map(rank, head_dim, random);
        TestLatentRun run(map, codec, 70 + random.below(200), 4, random);
        set_keys(keys, rope, run, random);
        TestTiles exact(DenseType::kF32, 4, head_dim);
        exact.fill(random);
        MixedJob job;
        job.add(exact.run());
        job.add(run);
        for (const int64_t group : {1, 3, 8}) {
          check.set_group(group);
          check.add(job.test(shape_of(head_dim, group), group == 3 ? 30 : 1, 300, random));
        }
      }
      check.expect_within_twice_naive(keys.coded ? "coded keys" : "dense keys");
    }
  }
}

TEST(AttendLatents, LongContextsInSeveralSpansMatchTheReference) {
  TestRandom random(3);
  const RopeTable rope(64, 3000, 10000);
  const TestMap map(40, 64, random);
  for (const Keys& keys : kKeys) {
    TestLatentRun run(map, {8}, 2100, 4, random);
    set_keys(keys, rope, run, random);
    TestTiles exact(DenseType::kF32, 150, 64);
    exact.fill(random);
    MixedJob job;
    job.add(run);
    job.add(exact.run(2104));
    ErrorCheck check(shape_of(64, 3), fast_variants());
    for (int i = 0; i < 5; ++i) check.add(job.test(shape_of(64, 3), 1, 2240, random));
    check.add(job.test(shape_of(64, 3), 40, 2200, random));
    check.expect_within_twice_naive("spans");
    expect_same_bits_at_any_threads(shape_of(64, 3), job.test(shape_of(64, 3), 2, 2240, random),
                                    fast_variants());
  }
}

TEST(AttendLatents, EveryInstructionSetMatches) {
  TestRandom random(17);
  const RopeTable rope(64, 300, 10000);
  const TestMap map(50, 64, random);
  for (const Keys& keys : kKeys) {
    TestLatentRun run(map, {4, 1}, 130, 0, random), banded(map, {8, 0, true}, 130, 130, random);
    set_keys(keys, rope, run, random);
    set_keys(keys, rope, banded, random);
    MixedJob job;
    job.add(run);
    job.add(banded);
    expect_every_instruction_set_matches(shape_of(64, 2), job, 260, random);
  }
}

TEST(AttendLatents, WindowsAndRunsNobodySeesGiveTheirPart) {
  TestRandom random(23);
  const TestMap map(12, 16, random);
  TestLatentRun run(map, {8}, 200, 10, random);
  run.use_dense_keys(DenseType::kF16, 10, random);
  TestTiles exact(DenseType::kF32, 200, 16);
  exact.fill(random);
  const AttendShape shape = shape_of(16, 2);
  for (const int64_t recent : {0, 1, 63, 64, 65, 199, 1000}) {
    MixedJob job;  // as strict mode reads it
    job.add(run);
    job.limit_last(recent, std::numeric_limits<int64_t>::max());
    job.add(exact.run(10));
    job.limit_last(0, recent);
    ErrorCheck check(shape, fast_variants());
    for (const int64_t queries : {1, 5, 100}) check.add(job.test(shape, queries, 100, random));
    check.expect_within_twice_naive("recent " + std::to_string(recent));
  }
}

struct Sums {
  std::vector<float> out, latents;  // rows as in a TestJob, tokens of latents kGap apart
};

Sums handed_out(const AttendShape& shape, const TestJob& test, const Variant& variant,
                int64_t width, int num_threads = 1) {
  ThreadPool pool(num_threads, ThreadPool::Pin::kNo);
  Sums sums;
  AttendJob job = test.job(sums.out);
  const int64_t stride = shape.group * width + testing::kGap;
  sums.latents.assign(static_cast<size_t>(test.queries * stride), testing::kGuard);
  job.latent_sums = {sums.latents.data(), stride, width};
  attend(shape, {&job, 1}, variant.precision, pool, variant.backend);
  return sums;
}

// out + D latents, in double.
std::vector<float> expanded(const AttendShape& shape, const LatentMap& map, Sums sums) {
  const int64_t row = shape.group * shape.head_dim + testing::kGap;
  const int64_t latent_row = shape.group * map.width + testing::kGap;
  for (int64_t t = 0; t < std::ssize(sums.out) / row; ++t) {
    for (int64_t head = 0; head < shape.group; ++head) {
      const float* latents = sums.latents.data() + t * latent_row + head * map.width;
      for (int64_t c = 0; c < shape.head_dim; ++c) {
        double sum = 0;
        for (int64_t r = 0; r < map.rank; ++r) {
          sum += double{latents[r]} * map.decode[r * shape.head_dim + c];
        }
        sums.out[static_cast<size_t>(t * row + head * shape.head_dim + c)] +=
            static_cast<float>(sum);
      }
    }
  }
  return std::move(sums.out);
}

constexpr Variant kReference{Backend::kReference, Precision::kF32};

TEST(AttendLatentSums, OutAndWhatDMakesOfThemIsAttention) {
  TestRandom random(31);
  const RopeTable rope(64, 300, 10000);
  for (const int64_t rank : {1, 40, 64}) {
    const TestMap map(rank, 64, random);
    for (const Keys& keys : kKeys) {
      TestLatentRun run(map, {8}, 130, 4, random);
      set_keys(keys, rope, run, random);
      TestTiles sinks(DenseType::kF32, 4, 64), tail(DenseType::kF32, 100, 64);
      sinks.fill(random);
      tail.fill(random);
      MixedJob job;
      job.add(sinks.run());
      job.add(run);
      job.add(tail.run(134));
      for (const int64_t group : {1, 3}) {
        const AttendShape shape = shape_of(64, group);
        // 0: some queries see no latents, the first one no key but its own.
        for (const int64_t position : {0, 150}) {
          const int64_t queries = group == 3 ? 80 : 2;
          const TestJob test = job.test(shape, queries, position, random);
          const auto exact = run_job(shape, test, kReference);
          const double floor = 0x1p-20 * max_abs(exact);
          const auto by_hand = handed_out(shape, test, kReference, map.map.width);
          EXPECT_LE(max_difference(expanded(shape, map.map, by_hand), exact), floor);
          for (const Variant& variant : fast_variants()) {
            const double late = max_difference(run_job(shape, test, variant), exact);
            const auto sums = handed_out(shape, test, variant, map.map.width);
            EXPECT_LE(max_difference(expanded(shape, map.map, sums), exact), 2 * late + floor)
                << variant.name() << " rank " << rank << " group " << group << " at " << position;
          }
        }
      }
    }
  }
}

TEST(AttendLatentSums, AreZerosWithoutLatentsAndWriteNothingElse) {
  TestRandom random(37);
  const AttendShape shape = shape_of(64, 2);
  const TestMap map(20, 64, random);
  TestLatentRun run(map, {4, 1}, 90, 40, random);
  run.use_dense_keys(DenseType::kF16, 40, random);
  TestTiles exact(DenseType::kF32, 40, 64);
  exact.fill(random);
  MixedJob none, both;
  none.add(exact.run());
  both.add(exact.run());
  both.add(run);
  std::vector<Variant> variants = fast_variants();
  variants.push_back(kReference);
  for (const Variant& variant : variants) {
    for (const int64_t queries : {1, 70}) {
      const TestJob plain = none.test(shape, queries, 0, random);
      const Sums without = handed_out(shape, plain, variant, 24);
      EXPECT_EQ(without.out, run_job(shape, plain, variant)) << variant.name();
      const TestJob test = both.test(shape, queries, 0, random);
      const Sums one = handed_out(shape, test, variant, 24, 1);
      const Sums three = handed_out(shape, test, variant, 24, 3);
      EXPECT_EQ(one.out, three.out) << variant.name();
      EXPECT_EQ(one.latents, three.latents) << variant.name();
      for (size_t i = 0; i < one.latents.size(); ++i) {
        const bool is_gap = i % 53 >= 48;  // 2 heads of 24, kGap
        ASSERT_EQ(without.latents[i], is_gap ? testing::kGuard : 0.0f) << variant.name();
        if (is_gap || i / 53 < 40) {
          ASSERT_EQ(one.latents[i], is_gap ? testing::kGuard : 0.0f) << variant.name();
        }
      }
    }
  }
}

TEST(AttendLatentSums, RefuseAnArrayThatDoesntFit) {
  TestRandom random(41);
  const AttendShape shape = shape_of(16, 2);
  const TestMap map(12, 16, random);
  TestLatentRun run(map, {8}, 70, 0, random);
  run.use_dense_keys(DenseType::kF16, 0, random);
  const TestJob test(shape, 2, 70, {run.run()}, random);
  ThreadPool pool(1);
  std::vector<float> out, latents(2 * 2 * 16);
  AttendJob job = test.job(out);
  const auto attempt = [&](LatentSums sums) {
    job.latent_sums = sums;
    attend(shape, {&job, 1}, Precision::kF32, pool);
  };
  EXPECT_NO_THROW(attempt({latents.data(), 32, 16}));
  EXPECT_THROW(attempt({latents.data(), 32, 8}), std::invalid_argument);   // not the map's
  EXPECT_THROW(attempt({latents.data(), 31, 16}), std::invalid_argument);  // rows overlap
  EXPECT_THROW(attempt({latents.data(), 32, -16}), std::invalid_argument);
  EXPECT_THROW(attempt({nullptr, 32, 16}), std::invalid_argument);
}

TEST(AttendLatents, RefuseMapsAndOffsetsThatDontFit) {
  TestRandom random(1);
  const TestMap map(12, 16, random), other(12, 16, random);
  TestLatentRun good(map, {8}, 70, 0, random), twin(other, {8}, 70, 70, random);
  good.use_dense_keys(DenseType::kF16, 5, random);
  twin.use_dense_keys(DenseType::kF16, 0, random);
  const AttendShape shape = shape_of(16, 1);
  const auto attempt = [&](const std::vector<AttendRun>& runs) {
    const TestJob test(shape, 1, 200, runs, random);
    return run_job(shape, test, fast_variants()[0]);
  };
  EXPECT_NO_THROW(attempt({good.run()}));
  EXPECT_THROW(attempt({good.run(), twin.run()}), std::invalid_argument);  // two maps
  AttendRun run = good.run();
  run.key_offset = 64;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  run.key_offset = 60;  // needs a third tile
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  LatentMap wide = map.map;
  wide.rank = 17;
  CodedSide side = *good.run().coded_values;
  side.latents = &wide;
  run = good.run();
  run.coded_values = &side;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  wide = map.map;
  wide.width = 24;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  AttendRun plain = good.dense_run();
  plain.key_offset = 1;
  EXPECT_THROW(attempt({plain}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
