// Attention over keys that are latents: the reference by algebra, the others by the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/walsh_hadamard.h"
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
using testing::TestCodedSide;
using testing::TestJob;
using testing::TestMap;
using testing::TestRandom;
using testing::TestTiles;

constexpr LatentCodec kCodecs[] = {{16}, {8}, {4, 2}, {3}, {2, 5}, {8, 0, true}};

TestCodec codec_of(const LatentCodec& codec, int64_t width, TestRandom& random) {
  return {.value_bits = codec.bits,
          .value_outliers = codec.outliers,
          .latents = true,
          .key_tiles = true,
          .bands = codec.banded ? testing::test_bands(width, random) : CodeBands{}};
}

// What stands beside keys that are latents.
struct Values {
  enum class Kind { kDense, kCodes, kRotatedCodes, kLatents };
  Kind kind;
  DenseType type = DenseType::kF16;  // dense
  int64_t offset = 0;                // dense: tokens before the first
  int bits = 4;                      // others
};

constexpr Values kValues[] = {
    {Values::Kind::kDense, DenseType::kF16, 0},   {Values::Kind::kDense, DenseType::kF16, 4},
    {Values::Kind::kDense, DenseType::kF16, 61},  {Values::Kind::kDense, DenseType::kBF16, 0},
    {Values::Kind::kDense, DenseType::kBF16, 1},  {Values::Kind::kDense, DenseType::kF32, 63},
    {Values::Kind::kDense, DenseType::kF32, 0},   {.kind = Values::Kind::kCodes, .bits = 8},
    {.kind = Values::Kind::kCodes, .bits = 3},    {.kind = Values::Kind::kRotatedCodes, .bits = 4},
    {.kind = Values::Kind::kLatents, .bits = 16}, {.kind = Values::Kind::kLatents, .bits = 8},
    {.kind = Values::Kind::kLatents, .bits = 2}};

// Tokens with keys as latents, and the same with every key and value expanded, as dense f32 tiles.
class TestLatentKeys {
 public:
  TestLatentKeys(const TestMap& map, LatentCodec codec, int64_t num_tokens, int64_t first_position,
                 TestRandom& random)
      : map_(map),
        keys_(KvSide::kValue, codec_of(codec, map.map.width, random), map.map.width, num_tokens,
              random),
        num_tokens_(num_tokens),
        first_position_(first_position),
        expanded_(DenseType::kF32, num_tokens, map.map.head_dim),
        latents_(DenseType::kF32, num_tokens, map.map.width) {
    keys_.side.latents = &map.map;
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t r = 0; r < map.map.rank; ++r) {
        latents_.set_key(t, r, static_cast<float>(keys_.stored(t, r)));
      }
    }
    for_each([&](int64_t t, int64_t c) {
      expanded_.set_key(t, c, static_cast<float>(map.expanded(keys_, t, c)));
    });
  }

  void use(const Values& values, const TestMap& value_map, TestRandom& random) {
    if (values.kind == Values::Kind::kDense) return use_dense(values, random);
    const bool is_latent = values.kind == Values::Kind::kLatents;
    TestCodec codec{.value_bits = values.bits,
                    .value_outliers = values.bits < kLatentBits ? 1 : 0,
                    .hadamard = values.kind == Values::Kind::kRotatedCodes,
                    .latents = is_latent};
    const int64_t dim = is_latent ? value_map.map.width : map_.map.head_dim;
    codes_ = std::make_unique<TestCodedSide>(KvSide::kValue, codec, dim, num_tokens_, random);
    if (is_latent) codes_->side.latents = &value_map.map;
    std::vector<double> row(static_cast<size_t>(map_.map.head_dim));
    for (int64_t t = 0; t < num_tokens_; ++t) {
      for (int64_t c = 0; c < map_.map.head_dim; ++c) {
        row[static_cast<size_t>(c)] =
            is_latent ? value_map.expanded(*codes_, t, c) : codes_->stored(t, c);
      }
      if (codec.hadamard) walsh_hadamard(row.data(), 1, map_.map.head_dim);
      for (int64_t c = 0; c < map_.map.head_dim; ++c) {
        expanded_.set_value(t, c, static_cast<float>(row[static_cast<size_t>(c)]));
      }
    }
  }

  AttendRun run() const {
    AttendRun run;
    if (dense_) run = dense_->run(first_position_);
    run.key_tiles = {};
    run.value_offset = value_offset_;
    run.coded_keys = &keys_.side;
    run.coded_values = codes_ ? &codes_->side : nullptr;
    run.num_tokens = num_tokens_;
    run.first_position = first_position_;
    return run;
  }
  AttendRun dense_run() const { return expanded_.run(first_position_); }
  // The same with the latents for keys: what naive attention over them reads.
  AttendRun naive_run() const {
    AttendRun run = dense_run();
    run.key_tiles = latents_.run().key_tiles;
    return run;
  }

 private:
  template <class Fn>
  void for_each(Fn&& fn) {
    for (int64_t t = 0; t < num_tokens_; ++t) {
      for (int64_t c = 0; c < map_.map.head_dim; ++c) fn(t, c);
    }
  }
  // Behind value_offset tokens that nobody may see.
  void use_dense(const Values& values, TestRandom& random) {
    value_offset_ = values.offset;
    dense_ =
        std::make_unique<TestTiles>(values.type, value_offset_ + num_tokens_, map_.map.head_dim);
    for (int64_t t = 0; t < value_offset_; ++t) {
      for (int64_t c = 0; c < map_.map.head_dim; ++c) dense_->set_value(t, c, 3000.0f);
    }
    for_each([&](int64_t t, int64_t c) {
      const float x = random.heavy_tailed();
      dense_->set_value(value_offset_ + t, c, x);
      const float stored = values.type == DenseType::kF16    ? round_to_half(x)
                           : values.type == DenseType::kBF16 ? round_to_bfloat16(x)
                                                             : x;
      expanded_.set_value(t, c, stored);
    });
  }

  const TestMap& map_;
  TestCodedSide keys_;
  std::unique_ptr<TestTiles> dense_;
  std::unique_ptr<TestCodedSide> codes_;
  int64_t value_offset_ = 0;
  int64_t num_tokens_, first_position_;
  TestTiles expanded_, latents_;
};

bool fits(const Values& values, int64_t head_dim) {
  return values.kind != Values::Kind::kRotatedCodes || (head_dim & (head_dim - 1)) == 0;
}

TEST(AttendLatentKeysReference, ProjectingTheQueryEqualsReconstructingEveryKey) {
  TestRandom random(5);
  for (const int64_t rank : {1, 7, 16, 32}) {
    const TestMap map(rank, 32, random), value_map(20, 32, random);
    for (const LatentCodec& codec : kCodecs) {
      for (const Values& values : kValues) {
        TestLatentKeys run(map, codec, 90, 7, random);
        run.use(values, value_map, random);
        TestTiles exact(DenseType::kF32, 7, 32), tail(DenseType::kF32, 20, 32);
        exact.fill(random);
        tail.fill(random);
        MixedJob job;
        job.add(exact.run());
        job.add(run);
        job.add(tail.run(97));
        const TestJob test = job.test(shape_of(32, 2), 3, 110, random);
        const auto late = reference(shape_of(32, 2), test, false);
        const auto early = reference(shape_of(32, 2), test, true);
        EXPECT_LE(max_difference(late, early), 2e-5 * max_abs(early)) << rank << " " << codec.bits;
      }
    }
  }
}

TEST(AttendLatentKeysReference, WeightsByHand) {
  // Keys mean + z D with z = 0 and ln 2; the query sees D alone, or also the mean.
  const float mean[8] = {0, 3, 0, 0, 0, 0, 0, 0}, decode[8] = {1, 0, 0, 0, 0, 0, 0, 0};
  const LatentMap map{1, 8, 8, mean, nullptr, decode};
  Buffer<Half> block(64 * 8);
  block[key_index(1, 0)] = to_half(std::log(2.0f));
  std::byte* blocks[] = {reinterpret_cast<std::byte*>(block.data())};
  CodedSide keys;
  keys.shape = {KvSide::kValue, kLatentBits, false, 1, 8, 1, true};
  keys.layout = kv_block_layout(keys.shape);
  keys.blocks = blocks;
  keys.latents = &map;
  TestTiles values(DenseType::kF32, 2, 8), exact(DenseType::kF32, 1, 8);
  for (int64_t c = 0; c < 8; ++c) values.set_value(1, c, 3);
  for (int64_t c = 0; c < 8; ++c) exact.set_value(0, c, 11);
  AttendRun run = values.run();
  run.key_tiles = {};
  run.coded_keys = &keys;
  const std::vector<AttendRun> runs = {run, exact.run(2)};
  ThreadPool pool(1);
  std::vector<Backend> backends = available_backends();
  for (const Backend backend : cuda_backends()) backends.push_back(backend);
  for (const Backend backend : backends) {
    for (const bool sees_mean : {false, true}) {
      // Weights 1, 2 and, of an exact key of zeros, 1, or as much less as the mean is worth.
      std::vector<float> query = {1, sees_mean ? std::log(2.0f) / 3 : 0, 0, 0, 0, 0, 0, 0}, out(8);
      const AttendJob job{query.data(), out.data(), 8, 1, 3, runs};
      attend({8, 1, 1}, {&job, 1}, Precision::kF32, pool, backend);
      const float expected = sees_mean ? (4 * 3.0f + 11) / 7 : (2 * 3.0f + 11) / 4;
      EXPECT_NEAR(out[0], expected, 2e-3) << backend_name(backend);  // of a half
    }
  }
}

TEST(AttendLatentKeys, AreAsAccurateAsThePlainLoop) {
  TestRandom random(9);
  size_t next = 0;  // of codecs
  for (const int64_t head_dim : {16, 80, 128}) {
    for (const Values& values : kValues) {
      if (!fits(values, head_dim)) continue;
      ErrorCheck check(shape_of(head_dim, 1), fast_variants());
      for (int i = 0; i < 3; ++i) {
        const LatentCodec& codec = kCodecs[next++ % std::size(kCodecs)];
        const TestMap map(1 + random.below(head_dim), head_dim, random);
        const TestMap value_map(1 + random.below(head_dim), head_dim, random);
        TestLatentKeys run(map, codec, 70 + random.below(200), 4, random);
        run.use(values, value_map, random);
        TestTiles exact(DenseType::kF32, 4, head_dim);
        exact.fill(random);
        MixedJob job;
        job.add(exact.run());
        job.add(run.run(), run.naive_run());
        for (const int64_t group : {1, 3, 8}) {
          check.set_group(group);
          check.add(job.test(shape_of(head_dim, group), group == 3 ? 30 : 1, 300, random));
        }
      }
      check.expect_within_twice_naive("values " + std::to_string(&values - kValues));
    }
  }
}

TEST(AttendLatentKeys, LongContextsInSeveralSpansMatchTheReference) {
  TestRandom random(3);
  const TestMap map(40, 64, random), value_map(24, 64, random);
  for (const Values& values : kValues) {
    TestLatentKeys run(map, {8}, 2100, 4, random);
    run.use(values, value_map, random);
    TestTiles exact(DenseType::kF32, 150, 64);
    exact.fill(random);
    MixedJob job;
    job.add(run.run(), run.naive_run());
    job.add(exact.run(2104));
    ErrorCheck check(shape_of(64, 3), fast_variants());
    for (int i = 0; i < 5; ++i) check.add(job.test(shape_of(64, 3), 1, 2240, random));
    check.add(job.test(shape_of(64, 3), 40, 2200, random));
    check.expect_within_twice_naive("spans " + std::to_string(&values - kValues));
    for (const int64_t queries : {2, 130}) {
      expect_same_bits_at_any_threads(
          shape_of(64, 3), job.test(shape_of(64, 3), queries, 2240, random), fast_variants());
    }
  }
}

TEST(AttendLatentKeys, EveryInstructionSetMatches) {
  TestRandom random(17);
  const TestMap map(50, 64, random), value_map(24, 64, random);
  for (const Values& values : kValues) {
    for (const LatentCodec codec : {LatentCodec{16}, {4, 1}, {8, 0, true}}) {
      TestLatentKeys run(map, codec, 130, 0, random);
      run.use(values, value_map, random);
      MixedJob job;
      job.add(run.run(), run.naive_run());
      expect_every_instruction_set_matches(shape_of(64, 2), job, 130, random);
    }
  }
}

TEST(AttendLatentKeys, WindowsAndRunsNobodySeesGiveTheirPart) {
  TestRandom random(23);
  const TestMap map(12, 16, random);
  TestLatentKeys run(map, {8}, 200, 10, random);
  run.use({Values::Kind::kDense, DenseType::kF16, 10}, map, random);
  TestTiles exact(DenseType::kF32, 200, 16);
  exact.fill(random);
  const AttendShape shape = shape_of(16, 2);
  for (const int64_t recent : {0, 1, 63, 64, 65, 199, 1000}) {
    MixedJob job;  // as strict mode reads it
    job.add(run.run(), run.naive_run());
    job.limit_last(recent, std::numeric_limits<int64_t>::max());
    job.add(exact.run(10));
    job.limit_last(0, recent);
    ErrorCheck check(shape, fast_variants());
    for (const int64_t queries : {1, 5, 100}) check.add(job.test(shape, queries, 100, random));
    check.expect_within_twice_naive("recent " + std::to_string(recent));
  }
}

TEST(AttendLatentKeys, AreProjectedPerJob) {
  // Sequences of other lengths, heads of other maps and a job without latents in one call.
  TestRandom random(31);
  const AttendShape shape = shape_of(32, 3);
  const TestMap first(20, 32, random), second(9, 32, random);
  TestLatentKeys a(first, {8}, 150, 0, random), b(second, {16}, 70, 0, random);
  a.use({Values::Kind::kDense, DenseType::kF16, 0}, first, random);
  b.use({.kind = Values::Kind::kLatents, .bits = 8}, first, random);
  TestTiles plain(DenseType::kF16, 90, 32);
  plain.fill(random);
  const TestJob tests[] = {TestJob(shape, 1, 200, {a.run()}, random),
                           TestJob(shape, 5, 90, {plain.run()}, random),
                           TestJob(shape, 100, 200, {b.run()}, random)};
  ThreadPool pool(2);
  for (const auto& variant : fast_variants()) {
    std::vector<float> together[3], alone[3];
    std::vector<AttendJob> jobs;
    for (int i = 0; i < 3; ++i) jobs.push_back(tests[i].job(together[i]));
    attend(shape, jobs, variant.precision, pool, variant.backend);
    for (int i = 0; i < 3; ++i) {
      const AttendJob job = tests[i].job(alone[i]);
      attend(shape, {&job, 1}, variant.precision, pool, variant.backend);
      EXPECT_EQ(together[i], alone[i]) << i << " " << variant.name();
    }
  }
}

TEST(AttendLatentKeys, RefuseMapsAndValuesThatDontFit) {
  TestRandom random(1);
  const TestMap map(12, 16, random), other(12, 16, random);
  TestLatentKeys good(map, {8}, 70, 0, random), twin(other, {8}, 70, 70, random);
  for (auto* run : {&good, &twin})
    run->use({Values::Kind::kDense, DenseType::kF16, 5}, map, random);
  TestLatentKeys both(map, {8}, 70, 70, random);
  both.use({.kind = Values::Kind::kLatents, .bits = 8}, map, random);
  const AttendShape shape = shape_of(16, 1);
  const auto attempt = [&](const std::vector<AttendRun>& runs) {
    return run_job(shape, TestJob(shape, 1, 200, runs, random), fast_variants()[0]);
  };
  EXPECT_NO_THROW(attempt({good.run()}));
  EXPECT_THROW(attempt({good.run(), twin.run()}), std::invalid_argument);  // two maps
  EXPECT_THROW(attempt({good.run(), both.run()}), std::invalid_argument);  // values of two kinds
  AttendRun run = good.run();
  run.value_offset = 64;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  run.value_offset = 60;  // needs a third tile
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  run = both.run();
  run.value_offset = 1;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  run = good.run();
  run.key_tiles = run.value_tiles;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  CodedSide side = *good.run().coded_keys;
  side.shape.side = KvSide::kKey;  // codes lie as those of values
  run = good.run();
  run.coded_keys = &side;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  LatentMap wide = map.map;
  wide.rank = 17;
  side = *good.run().coded_keys;
  side.latents = &wide;
  EXPECT_THROW(attempt({run}), std::invalid_argument);
  AttendRun plain = good.dense_run();
  plain.value_offset = 1;
  EXPECT_THROW(attempt({plain}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
