#include "kvquant/sparse.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>
#include <utility>

#include "base/half.h"
#include "base/rng.h"
#include "cache/blocked_sparse.h"

namespace kvquant {
namespace {

using Token = std::map<int32_t, float>;  // value of an index

struct Entries {
  std::vector<int32_t> indices;
  std::vector<float> values;
};

Entries entries_of(const Token& token) {
  Entries entries;
  for (const auto& [index, value] : token) {
    entries.indices.push_back(index);
    entries.values.push_back(value);
  }
  return entries;
}

// Tokens of up to `most` entries, fp16 numbers, some of them explicit zeros.
std::vector<Token> random_tokens(int64_t num_tokens, int64_t width, uint32_t most, uint64_t seed) {
  const CounterRng rng(seed);
  std::vector<Token> tokens(static_cast<size_t>(num_tokens));
  uint64_t i = 0;
  for (Token& token : tokens) {
    const uint32_t count = rng.below(i++, most + 1);
    for (uint32_t j = 0; j < count; ++j, i += 2) {
      const auto index = static_cast<int32_t>(rng.below(i, static_cast<uint32_t>(width)));
      token[index] = static_cast<float>(static_cast<int>(rng.below(i + 1, 201)) - 100) / 8;
    }
  }
  return tokens;
}

// The oracle: everything behind one another.
StandardSparse concatenated(const std::vector<Token>& tokens) {
  StandardSparse all;
  all.offsets.push_back(0);
  for (const Token& token : tokens) {
    const Entries entries = entries_of(token);
    all.indices.insert(all.indices.end(), entries.indices.begin(), entries.indices.end());
    all.values.insert(all.values.end(), entries.values.begin(), entries.values.end());
    all.offsets.push_back(static_cast<int64_t>(all.indices.size()));
  }
  return all;
}

void expect_same(const StandardSparse& a, const StandardSparse& b) {
  EXPECT_EQ(a.offsets, b.offsets);
  EXPECT_EQ(a.indices, b.indices);
  EXPECT_EQ(a.values, b.values);
}

template <class Matrix>
void append_all(Matrix& matrix, const std::vector<Token>& tokens) {
  for (const Token& token : tokens) {
    const Entries entries = entries_of(token);
    matrix.append_token(entries.indices, entries.values);
  }
}

// Both matrices, every form, against `tokens`.
void expect_holds(const std::vector<Token>& tokens, int64_t width, int64_t block_size,
                  SparseValueType type) {
  BlockedCSCMatrix keys(width, block_size, type);
  BlockedCSRMatrix values(width, block_size, type);
  append_all(keys, tokens);
  append_all(values, tokens);
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const StandardSparse all = concatenated(tokens);
  expect_same(keys.to_standard_csc(), all);
  expect_same(values.to_standard_csr(), all);
  EXPECT_EQ(keys.num_tokens(), num_tokens);
  EXPECT_EQ(keys.num_nonzeros(), all.offsets.back());
  EXPECT_EQ(keys.num_blocks(), (num_tokens + block_size - 1) / block_size);
  const SparseDense by_column = keys.to_dense(), by_row = values.to_dense();
  ASSERT_EQ(by_column.num_rows, width);
  ASSERT_EQ(by_column.num_cols, num_tokens);
  ASSERT_EQ(by_row.num_rows, num_tokens);
  ASSERT_EQ(by_row.num_cols, width);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const Token& token = tokens[static_cast<size_t>(t)];
    ASSERT_EQ(keys.num_nonzeros(t), static_cast<int64_t>(token.size()));
    for (int64_t c = 0; c < width; ++c) {
      const auto at = token.find(static_cast<int32_t>(c));
      const float expected = at == token.end() ? 0.0f : at->second;
      ASSERT_EQ(by_column.values[static_cast<size_t>(c * num_tokens + t)], expected);
      ASSERT_EQ(by_row.values[static_cast<size_t>(t * width + c)], expected);
    }
    Token again;
    for (const SparsePiece& piece : keys.pieces(t)) {
      for (int64_t i = 0; i < piece.count; ++i) again[piece.index(i)] = piece.value(i);
    }
    ASSERT_EQ(again, token);
  }
}

constexpr SparseValueType kTypes[] = {SparseValueType::kF32, SparseValueType::kF16};

TEST(Sparse, HoldsWhatWasAppendedAtBlockBorders) {
  for (const SparseValueType type : kTypes) {
    for (const int64_t block_size : {1, 2, 7, 64}) {
      for (const int64_t num_tokens :
           {int64_t{0}, int64_t{1}, block_size - 1, block_size, block_size + 1, 3 * block_size}) {
        for (const int64_t width : {1, 16, 256, 257}) {
          expect_holds(random_tokens(num_tokens, width, 9, 5), width, block_size, type);
        }
      }
    }
  }
}

TEST(Sparse, HoldsFullTokensAcrossPages) {
  std::vector<Token> tokens(3);
  for (int32_t i = 0; i < 1300; ++i) tokens[1][i] = static_cast<float>(i % 50);
  tokens[2][1299] = -0.5f;
  for (const SparseValueType type : kTypes) expect_holds(tokens, 1300, 256, type);
}

RC_GTEST_PROP(Sparse, HoldsAnySequence, ()) {
  const auto width = *rc::gen::inRange<int64_t>(1, 400);
  const auto block_size = *rc::gen::inRange<int64_t>(1, 40);
  const auto most = *rc::gen::inRange<uint32_t>(0, 60);
  const auto tokens = random_tokens(*rc::gen::inRange<int64_t>(0, 130), width, most,
                                    *rc::gen::arbitrary<uint64_t>());
  expect_holds(tokens, width, block_size, *rc::gen::elementOf(std::vector(kTypes, kTypes + 2)));
  RC_ASSERT(!testing::Test::HasFailure());
}

RC_GTEST_PROP(Sparse, ABatchEqualsItsTokens, ()) {
  const auto tokens =
      random_tokens(*rc::gen::inRange<int64_t>(0, 90), 300, 20, *rc::gen::arbitrary<uint64_t>());
  const auto num_before = *rc::gen::inRange<size_t>(0, tokens.size() + 1);
  const std::vector<Token> before(tokens.begin(),
                                  tokens.begin() + static_cast<int64_t>(num_before));
  const StandardSparse batch =
      concatenated({tokens.begin() + static_cast<int64_t>(num_before), tokens.end()});
  BlockedCSRMatrix matrix(300, 16), alias(300, 16);
  append_all(matrix, before);
  append_all(alias, before);
  matrix.append_batch(batch.offsets, batch.indices, batch.values);
  alias.batch_append(batch.offsets, batch.indices, batch.values);
  expect_same(matrix.to_standard_csr(), concatenated(tokens));
  expect_same(alias.to_standard_csr(), concatenated(tokens));
  RC_ASSERT(!testing::Test::HasFailure());
}

TEST(Sparse, ValuesComeBackToTheBit) {
  const std::vector<int32_t> indices = {0, 1, 2, 3, 4};
  const std::vector<float> wide = {-0.0f, 0.1f, 1e-45f, 3e38f, -7.0f};
  BlockedCSCMatrix f32(8, 4);
  f32.append(indices, wide);
  const std::vector<float> half = {-0.0f, 65504.0f, 0x1p-24f, -0x1.ff8p-15f, 0.0f};
  BlockedCSCMatrix f16(8, 4, SparseValueType::kF16);
  f16.append(indices, half);
  const auto f32_again = f32.to_standard_csc().values, f16_again = f16.to_standard_csc().values;
  for (size_t i = 0; i < indices.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(f32_again[i]), std::bit_cast<uint32_t>(wide[i]));
    EXPECT_EQ(std::bit_cast<uint32_t>(f16_again[i]), std::bit_cast<uint32_t>(half[i]));
  }
}

TEST(Sparse, EveryFiniteHalfIsTakenAndItsNeighboursAreNot) {
  const std::vector<int32_t> index = {0};
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float half = to_float(Half{static_cast<uint16_t>(bits)});
    BlockedCSRMatrix matrix(1, 1, SparseValueType::kF16);
    const auto append = [&](float value) { matrix.append(index, std::span(&value, 1)); };
    if (!std::isfinite(half)) {
      ASSERT_THROW(append(half), std::invalid_argument) << bits;
      continue;
    }
    ASSERT_THROW(append(std::nextafter(half, 1e9f)), std::invalid_argument) << bits;
    ASSERT_THROW(append(std::nextafter(half, -1e9f)), std::invalid_argument) << bits;
    append(half);
    const float again = matrix.pieces(0).front().value(0);
    ASSERT_EQ(std::bit_cast<uint32_t>(again), std::bit_cast<uint32_t>(half)) << bits;
  }
}

TEST(Sparse, NothingMovesIn100000Appends) {
  BlockedCSCMatrix matrix(1024, 256, SparseValueType::kF16);
  std::vector<SparsePiece> pieces;
  const std::vector<float> values = {1, 2, 3};
  for (int32_t t = 0; t < 100000; ++t) {
    const int32_t first = t % 1000;
    matrix.append_token(std::vector<int32_t>{first, first + 1, first + 20}, values);
    pieces.push_back(matrix.pieces(t).front());
  }
  for (int32_t t = 0; t < 100000; ++t) {
    const SparsePiece now = matrix.pieces(t).front();
    ASSERT_EQ(now.indices, pieces[static_cast<size_t>(t)].indices);
    ASSERT_EQ(now.values, pieces[static_cast<size_t>(t)].values);
    ASSERT_EQ(now.index(0), t % 1000);
    ASSERT_EQ(now.value(0), 1);
  }
}

// Counted from the documented layout (docs/sparse.md), not from the code's own sums.
TEST(Sparse, TheFootprintCountsBlocksPagesAndDirectories) {
  struct Case {
    int64_t width, block_size;
    SparseValueType type;
    int64_t end_bytes, entry_bytes;
  };
  const Case cases[] = {{128, 256, SparseValueType::kF16, 2, 3},
                        {128, 256, SparseValueType::kF32, 2, 5},
                        {1024, 256, SparseValueType::kF16, 4, 4},
                        {1024, 256, SparseValueType::kF32, 4, 6}};
  for (const Case& c : cases) {
    BlockedCSRMatrix matrix(c.width, c.block_size, c.type);
    EXPECT_EQ(matrix.memory_footprint().total_bytes, 0);
    for (int t = 0; t < 5000; ++t) {
      matrix.append_token(std::vector<int32_t>{1, 2, 3, 4}, std::vector<float>{1, 2, 3, 4});
    }
    const SparseFootprint f = matrix.memory_footprint();
    // 16 pages of 512, 8 of 1024 and 2 of 2048; directories of 16 and 32 entries hold both.
    const int64_t page_entries = 16 * 512 + 8 * 1024 + 2 * 2048, num_blocks = (5000 + 255) / 256;
    EXPECT_EQ(f.num_nonzeros, 20000);
    EXPECT_EQ(f.data_bytes, page_entries * c.entry_bytes);
    EXPECT_EQ(f.offset_bytes, static_cast<int64_t>(sizeof(BlockedSparse)) +
                                  num_blocks * 256 * c.end_bytes + 48 * 24 + 48 * 16);
    EXPECT_EQ(f.total_bytes, f.offset_bytes + f.data_bytes);
  }
}

TEST(Sparse, BadInputIsRefusedAndChangesNothing) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const SparseValueType type : kTypes) {
    BlockedCSCMatrix matrix(10, 4, type);
    matrix.append_token(std::vector<int32_t>{3}, std::vector<float>{1});
    const StandardSparse before = matrix.to_standard_csc();
    const auto refused = [&](const std::vector<int32_t>& indices,
                             const std::vector<float>& values) {
      EXPECT_THROW(matrix.append_token(indices, values), std::invalid_argument);
      std::vector<int64_t> offsets = {0, 0, static_cast<int64_t>(indices.size())};
      EXPECT_THROW(matrix.append_batch(offsets, indices, values), std::invalid_argument);
      expect_same(matrix.to_standard_csc(), before);
    };
    refused({1, 2}, {1});
    refused({1}, {1, 2});
    refused({2, 1}, {1, 2});
    refused({2, 2}, {1, 2});
    refused({-1}, {1});
    refused({10}, {1});
    refused({1, 4}, {1, NAN});
    refused({1, 4}, {inf, 1});
    if (type == SparseValueType::kF16) {
      refused({1}, {0.1f});
      refused({1}, {65536.0f});
      refused({1}, {1e-9f});
    }
    const std::vector<int32_t> indices = {1, 2};
    const std::vector<float> values = {1, 2};
    for (const std::vector<int64_t>& offsets : std::vector<std::vector<int64_t>>{
             {}, {0}, {0, 1}, {1, 2}, {0, 3, 2}, {0, 2, 1, 2}, {0, -1, 2}}) {
      EXPECT_THROW(matrix.append_batch(offsets, indices, values), std::invalid_argument);
      expect_same(matrix.to_standard_csc(), before);
    }
    EXPECT_THROW(matrix.pieces(1), std::invalid_argument);
    EXPECT_THROW(matrix.num_nonzeros(-1), std::invalid_argument);
  }
}

TEST(Sparse, MessagesNameTokenIndexAndValue) {
  BlockedCSRMatrix matrix(10, 4, SparseValueType::kF16);
  matrix.append_token({}, {});
  try {
    matrix.append_token(std::vector<int32_t>{2, 7}, std::vector<float>{1, 0.1f});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "BlockedCSRMatrix: the value of token 1 at index 7 must be an fp16 number, it is "
                 "0.100000001");
  }
}

TEST(Sparse, ShapesOutsideTheLimitsAreRefused) {
  for (const int64_t width : {int64_t{-1}, int64_t{0}, int64_t{65537}}) {
    EXPECT_THROW(BlockedCSCMatrix(width, 64), std::invalid_argument);
    EXPECT_THROW(BlockedCSRMatrix(width, 64), std::invalid_argument);
  }
  for (const int64_t block_size : {int64_t{-1}, int64_t{0}, int64_t{32769}}) {
    EXPECT_THROW(BlockedCSCMatrix(16, block_size), std::invalid_argument);
  }
  BlockedCSCMatrix widest(65536, 32768);
  widest.append_token(std::vector<int32_t>{65535}, std::vector<float>{2});
  EXPECT_EQ(widest.pieces(0).front().index(0), 65535);
}

TEST(Sparse, AMovedFromMatrixIsAnEmptyOneOfTheSameShape) {
  const auto tokens = random_tokens(20, 50, 5, 3);
  BlockedCSCMatrix a(50, 8);
  append_all(a, tokens);
  BlockedCSCMatrix b = std::move(a);
  expect_same(b.to_standard_csc(), concatenated(tokens));
  EXPECT_EQ(a.num_tokens(), 0);  // NOLINT(bugprone-use-after-move): what is tested
  EXPECT_EQ(a.num_rows(), 50);
  EXPECT_EQ(a.to_standard_csc().offsets, std::vector<int64_t>{0});
  EXPECT_TRUE(a.to_dense().values.empty());
  append_all(a, tokens);
  expect_same(a.to_standard_csc(), concatenated(tokens));
  BlockedCSCMatrix c(7, 3);
  c = std::move(b);
  EXPECT_EQ(c.num_rows(), 50);
  expect_same(c.to_standard_csc(), concatenated(tokens));
}

}  // namespace
}  // namespace kvquant
