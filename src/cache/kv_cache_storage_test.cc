// Memory, errors and determinism of a KvCache.
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "cache/kv_cache.h"
#include "cache/kv_cache_test_feed.h"
#include "formats/kv_block.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::Row;

using Fixture = test::FedCache;
using test::stream;

constexpr int64_t kRowSize = test::kFedRowSize;

TEST(KvCacheStorage, OneChunkAndPiecesGiveTheSameCodes) {
  const auto rows = stream(500);
  for (const char* spec : {"nuq3-1%", "int8", "k=int4,v=had+nuq4-2%"}) {
    SCOPED_TRACE(spec);
    Fixture whole(spec, CacheMode::kStrict), pieces(spec, CacheMode::kStrict);
    const auto a = whole.cache.add_sequence(), b = pieces.cache.add_sequence();
    whole.append(a, rows, 0, 100);
    pieces.append(b, rows, 0, 100);  // the same first chunk, so the same key parameters
    whole.append(a, rows, 100, 400);
    int64_t first = 100;
    for (int64_t size = 1; first < 500; first += size, size = size * 3 % 97) {
      size = std::min<int64_t>(size, 500 - first);
      pieces.append(b, rows, first, size);
    }
    EXPECT_EQ(whole.contents(a), pieces.contents(b));
  }
}

TEST(KvCacheStorage, ThreadsDoNotChangeTheContents) {
  const auto rows = stream(400);
  for (const char* spec : {"fp16", "nuq4-2%", "k=nuq2,v=fp16", "k=int8,v=had+nuq3-1%"}) {
    Fixture one(spec, CacheMode::kAsServed, 1), four(spec, CacheMode::kAsServed, 4);
    const auto a = one.cache.add_sequence(), b = four.cache.add_sequence();
    for (const int64_t first : {0, 200}) {
      one.append(a, rows, first, 200);
      four.append(b, rows, first, 200);
    }
    EXPECT_EQ(one.contents(a), four.contents(b));
    EXPECT_EQ(one.cache.memory_bytes(), four.cache.memory_bytes());
  }
}

TEST(KvCacheStorage, Fp16BytesAreItsBlocks) {
  Fixture f("fp16,block=128", CacheMode::kAsServed);
  EXPECT_EQ(f.cache.memory_bytes(), 0);
  const auto id = f.cache.add_sequence();
  EXPECT_EQ(f.cache.memory_bytes(), 0);
  f.append(id, stream(129), 0, 129);
  EXPECT_EQ(f.cache.memory_bytes(), 2 * 2 * 2 * (128 * kRowSize * 2 + 8));  // layers, sides, blocks
  EXPECT_EQ(f.cache.num_compressed_tokens(id), 0);
}

TEST(KvCacheStorage, CompressedBytesEqualANaiveRecount) {
  const auto rows = stream(300);
  for (const char* text :
       {"nuq4,block=64", "nuq3-2%,block=128", "nuq2-1%", "int4", "int8,block=64"}) {
    SCOPED_TRACE(text);
    const CacheSpec spec = parse_spec(text);
    Fixture f(text, CacheMode::kStrict);
    const auto id = f.cache.add_sequence();
    f.append(id, rows, 0, 300);

    test::ModelLayer model;
    model.key = {.codec = spec.key, .is_key = true};
    model.value = {.codec = spec.value, .is_key = false};
    model.append(rows, rows);
    const int bits = code_bits(spec.key.quantizer);
    const int64_t book_bytes = bits == 8 ? 0 : 4 << bits;  // 8 bits have a formula
    const bool sparse = spec.key.outlier_percent > 0;
    int64_t layer_bytes = kRowSize * 2 * (sparse ? 4 : 2);  // scale, zero, thresholds
    for (const auto side : {KvSide::kKey, KvSide::kValue}) {
      const int64_t num_blocks = (300 + spec.block - 1) / spec.block;
      const auto layout = kv_block_layout({side, bits, sparse, 3, 16, spec.block / 64});
      layer_bytes += num_blocks * (layout.num_bytes + 8);
      const auto& marks = side == KvSide::kKey ? model.key.outliers : model.value.outliers;
      for (int64_t head = 0; head < 3; ++head) {
        int64_t count = 0;
        for (const auto& row : marks) {
          count += std::count(row.begin() + head * 16, row.begin() + (head + 1) * 16, 1);
        }
        layer_bytes += (count + 127) / 128 * (512 + 8);
      }
    }
    const int64_t staging = 2 * 300 * kRowSize * 2;
    EXPECT_EQ(f.cache.memory_bytes(), 2 * layer_bytes + staging + book_bytes);
    EXPECT_EQ(f.cache.num_compressed_tokens(id), 300);
  }
}

TEST(KvCacheStorage, TheTailStaysSmallWhilePromptsAreLong) {
  Fixture f("nuq4,block=64", CacheMode::kAsServed);  // sink 4, recent 64
  const auto rows = stream(964);
  const auto id = f.cache.add_sequence();
  for (int64_t first = 0; first < 960; first += 96) f.append(id, rows, first, 96);
  f.append(id, rows, 960, 1);
  // All but 4 sinks and between 64 and 127 of the tail, in whole tiles.
  const int64_t encoded = (960 - 4 - 64) / 64 * 64;
  EXPECT_EQ(f.cache.num_compressed_tokens(id), encoded);
  const auto keys = kv_block_layout({KvSide::kKey, 4, false, 3, 16, 1});
  const auto values = kv_block_layout({KvSide::kValue, 4, false, 3, 16, 1});
  int64_t layer_bytes = encoded / 64 * (keys.num_bytes + values.num_bytes + 16);
  layer_bytes += kRowSize * 2 * 2;                  // scales and zero points
  layer_bytes += 2 * (4 + 64 + 64) * kRowSize * 2;  // sinks and window, both sides
  const int64_t staging = 2 * 96 * kRowSize * 2;    // one chunk of one layer
  EXPECT_EQ(f.cache.memory_bytes(), 2 * layer_bytes + staging + 64);
}

TEST(KvCacheStorage, OnlyTokensThatWereReadCompressedCount) {
  const auto rows = stream(301);
  Fixture served("nuq4", CacheMode::kAsServed);
  const auto id = served.cache.add_sequence();
  served.append(id, rows, 0, 300);
  EXPECT_EQ(served.cache.num_compressed_tokens(id), 0);  // one chunk sees itself exactly
  served.append(id, rows, 300, 1);
  EXPECT_EQ(served.cache.num_compressed_tokens(id), 192);
  Fixture strict("nuq4,sink=10,recent=280", CacheMode::kStrict);
  const auto other = strict.cache.add_sequence();
  strict.append(other, rows, 0, 280);
  EXPECT_EQ(strict.cache.num_compressed_tokens(other), 0);
  strict.append(other, rows, 280, 20);
  EXPECT_EQ(strict.cache.num_compressed_tokens(other), 10);
}

TEST(KvCacheStorage, CompressedTokensBehindASlidingWindowDontCount) {
  const auto rows = stream(301);
  const auto count = [&](const char* spec, CacheMode mode, int64_t sliding_window) {
    Fixture f(spec, mode, /*num_threads=*/1, sliding_window);
    const auto id = f.cache.add_sequence();
    f.append(id, rows, 0, 300);
    f.append(id, rows, 300, 1);
    return f.cache.num_compressed_tokens(id);
  };
  // Compressed are [4, 196) as served, [10, 301 - 20) strict; the last query is at 300.
  EXPECT_EQ(count("nuq4", CacheMode::kAsServed, 1000), 192);
  EXPECT_EQ(count("nuq4", CacheMode::kAsServed, 297), 192);
  EXPECT_EQ(count("nuq4", CacheMode::kAsServed, 296), 191);
  EXPECT_EQ(count("nuq4", CacheMode::kAsServed, 106), 1);
  EXPECT_EQ(count("nuq4", CacheMode::kAsServed, 105), 0);
  EXPECT_EQ(count("nuq4", CacheMode::kAsServed, 1), 0);
  EXPECT_EQ(count("nuq4,sink=10,recent=20", CacheMode::kStrict, 301), 271);
  EXPECT_EQ(count("nuq4,sink=10,recent=20", CacheMode::kStrict, 50), 30);
  EXPECT_EQ(count("nuq4,sink=10,recent=20", CacheMode::kStrict, 20), 0);
}

TEST(KvCacheStorage, DroppedSequencesGiveTheirBlocksBack) {
  const auto rows = stream(300);
  for (const char* spec : {"fp16", "nuq2-5%,block=64"}) {
    Fixture f(spec, CacheMode::kStrict);
    const auto first = f.cache.add_sequence();
    f.append(first, rows, 0, 300);
    const auto expected = f.contents(first);
    const int64_t bytes = f.cache.memory_bytes();
    f.cache.drop(first);
    EXPECT_LE(f.cache.memory_bytes(), 64);  // the codebook
    const auto second = f.cache.add_sequence();
    EXPECT_NE(first, second);
    f.append(second, rows, 0, 300);  // in blocks that were written before
    EXPECT_EQ(f.contents(second), expected);
    EXPECT_EQ(f.cache.memory_bytes(), bytes);
    EXPECT_THROW(f.cache.length(first), std::invalid_argument);
  }
}

TEST(KvCacheStorage, BadNumbersAreRefusedAndChangeNothing) {
  for (const char* spec : {"fp16", "bf16", "fp32", "nuq3-1%"}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      Fixture f(spec, CacheMode::kStrict);
      const auto id = f.cache.add_sequence();
      auto rows = stream(80);
      f.append(id, rows, 0, 70);
      const auto before = f.contents(id);
      const int64_t bytes = f.cache.memory_bytes();
      rows[75][2 * 16 + 5] = bad;
      try {
        f.append(id, rows, 70, 10);
        FAIL() << spec;
      } catch (const FormatError& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("layer 0, KV head 2"), std::string::npos) << message;
        EXPECT_NE(message.find("token 5"), std::string::npos) << message;
      }
      EXPECT_EQ(f.cache.memory_bytes(), bytes);
      EXPECT_EQ(f.contents(id), before);
    }
  }
  Fixture f("nuq4", CacheMode::kStrict);
  auto rows = stream(1);
  rows[0][0] = 70000;  // no fp16 number
  EXPECT_THROW(f.append(f.cache.add_sequence(), rows, 0, 1), FormatError);
}

TEST(KvCacheStorage, CallersMistakesAreNamed) {
  Fixture f("nuq4", CacheMode::kAsServed);
  const auto id = f.cache.add_sequence();
  const auto rows = stream(1000);
  std::vector<float> flat;
  const auto chunk = test::as_chunk({rows.begin(), rows.begin() + 200}, 3, flat);
  EXPECT_THROW(f.cache.append(1, id, chunk, chunk), std::invalid_argument);  // layer 0 comes first
  EXPECT_THROW(f.cache.append(2, id, chunk, chunk), std::invalid_argument);
  EXPECT_THROW(f.cache.append(0, id + 1, chunk, chunk), std::invalid_argument);
  EXPECT_THROW(f.cache.prepare_view(0, id), std::invalid_argument);  // empty
  f.cache.append(0, id, chunk, chunk);
  EXPECT_THROW(f.cache.append(0, id, chunk, chunk), std::invalid_argument);
  EXPECT_THROW(f.cache.view(0, id, 0), std::invalid_argument);  // not prepared
  f.cache.append(1, id, chunk, chunk);
  EXPECT_THROW(f.cache.prepare_view(0, id), std::invalid_argument);  // its chunk is encoded
  EXPECT_NO_THROW(f.cache.prepare_view(1, id));
  EXPECT_THROW(f.cache.view(1, id, 3), std::invalid_argument);
  f.append(id, rows, 0, 800);  // up to the last position
  EXPECT_THROW(f.append(id, rows, 0, 1), std::invalid_argument);
  const auto none = test::as_chunk({}, 3, flat);
  EXPECT_THROW(f.cache.append(0, id, none, none), std::invalid_argument);
  EXPECT_THROW(Fixture("had+int8", CacheMode::kStrict), std::invalid_argument);  // keys
  EXPECT_THROW(Fixture("v=pca8", CacheMode::kStrict), std::invalid_argument);
  EXPECT_THROW(Fixture("nuq4,layers=2:fp16", CacheMode::kStrict), std::invalid_argument);
}

// Mean squared error of values read back, on standard normal data; fp16 rounding is nothing to it.
double round_trip_error(const char* spec) {
  const KvShape shape{1, 3, 64};
  const RopeTable rope(64, 1024, 10000);
  ThreadPool pool(1);
  KvCache cache(shape, parse_spec(spec), CacheMode::kStrict, rope, pool);
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  std::vector<Row> rows(1024, Row(192));
  for (Row& row : rows) std::generate(row.begin(), row.end(), [&] { return normal(rng); });
  std::vector<float> flat;
  const auto id = cache.add_sequence();
  const auto x = test::as_chunk(rows, 3, flat);
  cache.append(0, id, x, x);
  cache.prepare_view(0, id);
  double sum = 0;
  for (int64_t head = 0; head < 3; ++head) {
    const AttendRun run = cache.view(0, id, head)[0];
    for (int64_t t = 0; t < 1024; ++t) {
      Row expected(rows[t].begin() + head * 64, rows[t].begin() + (head + 1) * 64);
      const Row value = test::value_in_run(run, t, 64);
      for (int c = 0; c < 64; ++c) sum += std::pow(double{value[c]} - expected[c], 2);
      const Row key = test::key_in_run(run, t, 64);  // rotation keeps lengths
      rope_row(expected.data(), rope.cos(t), rope.sin(t), 64);
      for (int c = 0; c < 64; ++c) sum += std::pow(double{key[c]} - expected[c], 2);
    }
  }
  return sum / (2 * 1024 * 192);
}

TEST(KvCacheStorage, RoundTripErrorOnNormalDataIsNearTheOptimum) {
  const double four = round_trip_error("nuq4-1%"), three = round_trip_error("nuq3-1%");
  const double two = round_trip_error("nuq2-1%"), eight = round_trip_error("int8");
  RecordProperty("mse", std::to_string(four) + " " + std::to_string(three));
  EXPECT_GT(four, 0.0060);
  EXPECT_LT(four, 0.0080);
  EXPECT_GT(three, 0.0240);
  EXPECT_LT(three, 0.0300);
  EXPECT_GT(two, 0.0900);
  EXPECT_LT(two, 0.1100);
  // Uniform: step^2 / 12, with 1/127.5 of half a range of about 3.1 deviations.
  EXPECT_GT(eight, 0.3e-4);
  EXPECT_LT(eight, 0.8e-4);
}

TEST(KvCacheStorage, RotationSpreadsLargeChannelsOfValues) {
  // One channel a hundred times as large as the others: a row's range would be its.
  const auto error_of = [](const char* spec) {
    Fixture f(spec, CacheMode::kStrict);
    auto rows = stream(200);
    std::mt19937 rng(6);
    std::normal_distribution<float> normal;
    for (Row& row : rows) {
      for (size_t c = 0; c < row.size(); ++c) row[c] = normal(rng) * (c % 16 == 5 ? 100.0f : 1.0f);
    }
    const auto id = f.cache.add_sequence();
    f.append(id, rows, 0, 200);
    f.cache.prepare_view(1, id);
    double sum = 0;
    for (int64_t head = 0; head < 3; ++head) {
      const AttendRun run = f.cache.view(1, id, head)[0];
      for (int64_t t = 0; t < 200; ++t) {
        const Row value = test::value_in_run(run, t, 16);
        for (int c = 0; c < 16; ++c) {
          if (c != 5) sum += std::pow(double{value[c]} - rows[t][head * 16 + c], 2);
        }
      }
    }
    return sum;
  };
  const double plain = error_of("v=nuq4"), rotated = error_of("v=had+nuq4");
  EXPECT_LT(rotated, plain);
  EXPECT_GT(rotated, 0.01 * plain);
}

TEST(KvCacheStorage, RotatedValuesHaveRoomForTheSumOfAHead) {
  Fixture f("v=had+int4", CacheMode::kStrict);
  const auto id = f.cache.add_sequence();
  std::vector<Row> rows(1,
                        Row(kRowSize, 16376.0f));  // 65504 / sqrt(16): one rotated value of 65504
  f.append(id, rows, 0, 1);
  f.cache.prepare_view(1, id);
  EXPECT_EQ(test::value_in_run(f.cache.view(1, id, 0)[0], 0, 16), Row(16, 16376.0f));
  rows[0][3] = 16400;
  EXPECT_THROW(f.append(id, rows, 0, 1), FormatError);
}

TEST(KvCacheStorage, AConstantCacheIsExact) {
  for (const float constant : {0.0f, -2.5f, 60000.0f, 6e-8f}) {
    Fixture f("nuq2", CacheMode::kStrict);
    const auto id = f.cache.add_sequence();
    f.append(id, std::vector<Row>(70, Row(kRowSize, constant)), 0, 70);
    f.cache.prepare_view(1, id);
    const AttendRun run = f.cache.view(1, id, 0)[0];
    for (int64_t t = 0; t < 70; ++t) {
      EXPECT_EQ(test::value_in_run(run, t, 16), Row(16, round_to_half(constant)));
    }
  }
}

}  // namespace
}  // namespace kvquant
