// Calibrated plans, which specs alone don't reach, and what appending leaves alone; everything else
// of a side is tested through KvCache.
#include "cache/nuq_side.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "base/half.h"

namespace kvquant {
namespace {

constexpr int64_t kHeads = 3, kHeadDim = 16, kRowSize = kHeads * kHeadDim;

enum class Ranges { kFitted, kCalibrated };

// A side of keys or values with feedback and a codebook per head, and all that its plan points to.
struct Fixture {
  Fixture(KvSide side, int bits, double percent, Ranges ranges) : pages(sizeof(OutlierPage)) {
    std::mt19937 rng(17);
    std::normal_distribution<float> normal;
    for (int64_t head = 0; head < kHeads; ++head) {
      if (bits == 8) {
        books.push_back(make_uniform_codebook(8));
        continue;
      }
      std::vector<float> levels(size_t{1} << bits);
      for (size_t i = 0; i < levels.size(); ++i) {
        const float x = 2 * static_cast<float>(i) / static_cast<float>(levels.size() - 1) - 1;
        levels[i] = x * (1 - 0.1f * static_cast<float>(head));
      }
      books.push_back(make_codebook(levels));
    }
    plan.side = side;
    plan.outlier_percent = percent;
    plan.codebooks = books;
    plan.shape = {side, bits, percent > 0, kHeads, kHeadDim, /*num_tiles=*/1};
    plan.layout = kv_block_layout(plan.shape);
    blocks.emplace_back(plan.layout.num_bytes);
    plan.pool = &blocks.front();
    plan.pages = &pages;
    if (side == KvSide::kValue) return;
    for (int64_t head = 0; head < kHeads; ++head) {
      orders.emplace_back(kHeadDim);
      std::iota(orders.back().begin(), orders.back().end(), uint8_t{0});
      std::shuffle(orders.back().begin(), orders.back().end(), rng);
      coefficients.emplace_back(kHeadDim * kHeadDim);
      for (float& a : coefficients.back()) a = 0.2f * normal(rng);
    }
    for (int64_t head = 0; head < kHeads; ++head) {
      feedback.push_back({orders[head].data(), coefficients[head].data()});
    }
    plan.feedback = feedback;
    if (ranges == Ranges::kFitted) return;
    halves.resize(4 * kRowSize);
    for (int64_t c = 0; c < kRowSize; ++c) {
      halves[c] = to_half(1.0f + 0.1f * std::abs(normal(rng)));
      halves[kRowSize + c] = to_half(0.2f * normal(rng));
      halves[2 * kRowSize + c] = to_half(-1.5f - 0.5f * std::abs(normal(rng)));
      halves[3 * kRowSize + c] = to_half(1.5f + 0.5f * std::abs(normal(rng)));
    }
    plan.ranges = halves;
  }

  BlockPool pages;
  std::vector<BlockPool> blocks;
  std::vector<NuqCodebook> books;
  std::vector<std::vector<uint8_t>> orders;
  std::vector<std::vector<float>> coefficients;
  std::vector<RoundingFeedback> feedback;
  std::vector<Half> halves;
  NuqPlan plan;
  ThreadPool threads{2, ThreadPool::Pin::kNo};
};

std::vector<float> random_rows(int64_t num_rows) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<float> rows(num_rows * kRowSize);
  for (float& x : rows) x = round_to_half(normal(rng));
  return rows;
}

// As a cache hands rows over, cut in two somewhere.
class Halves {
 public:
  explicit Halves(std::span<const float> rows, int64_t first = 0) : first_(first * kRowSize) {
    for (const float x : rows) numbers_.push_back(to_half(x));
  }
  operator HalfRows() const {  // NOLINT(google-explicit-constructor): stands for them
    const std::span all(numbers_);
    return {all.first(first_), all.subspan(first_), kRowSize};
  }

 private:
  std::vector<Half> numbers_;
  size_t first_;
};

// Everything, [head][tile][head_dim][64].
std::vector<float> contents(const NuqSide& side) {
  std::vector<float> out;
  std::vector<float> planar(kHeadDim * kTileTokens);
  for (int64_t head = 0; head < kHeads; ++head) {
    for (int64_t tile = 0; tile * kTileTokens < side.num_tokens(); ++tile) {
      side.decode(tile, head, planar.data());
      out.insert(out.end(), planar.begin(), planar.end());
    }
  }
  return out;
}

// What one head of one token decodes to: the words of docs/numerics.md.
std::vector<float> decoded_token(const Fixture& f, const float* x, int64_t head) {
  std::vector<float> errors, out(kHeadDim);
  const auto range = [&](int64_t kind, int64_t c) {
    return to_float(f.halves[kind * kRowSize + head * kHeadDim + c]);
  };
  for (int64_t i = 0; i < kHeadDim; ++i) {
    const int64_t c = f.orders[head][i];
    float t = x[c];
    for (int64_t j = 0; j < i; ++j) {
      t = std::fma(f.coefficients[head][i * kHeadDim + j], errors[j], t);
    }
    const float y = (t - range(1, c)) * (1 / range(0, c));
    const float product = level_of(f.books[head], code_of(f.books[head], y)) * range(0, c);
    out[c] = product + range(1, c);
    const bool outlier = f.plan.shape.has_outliers && (x[c] < range(2, c) || x[c] > range(3, c));
    if (outlier) out[c] = x[c];
    errors.push_back(x[c] - out[c]);
  }
  return out;
}

TEST(NuqSide, CalibratedKeysDecodeAsTheRuleSays) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const double percent : {0.0, 1.0}) {
      Fixture f(KvSide::kKey, bits, percent, Ranges::kCalibrated);
      NuqSide side(f.plan);
      EXPECT_TRUE(side.is_fitted());
      const std::vector<float> rows = random_rows(100);
      side.append(Halves(std::span(rows).first(30 * kRowSize)), f.threads);
      side.append(Halves(std::span(rows).subspan(30 * kRowSize), 13), f.threads);
      std::vector<float> planar(kHeadDim * kTileTokens);
      for (int64_t head = 0; head < kHeads; ++head) {
        for (int64_t t = 0; t < 100; ++t) {
          side.decode(t / 64, head, planar.data());
          std::vector<float> actual;
          for (int64_t c = 0; c < kHeadDim; ++c) actual.push_back(planar[c * 64 + t % 64]);
          const float* x = &rows[t * kRowSize + head * kHeadDim];
          ASSERT_EQ(actual, decoded_token(f, x, head))
              << bits << " bits, token " << t << " head " << head;
        }
      }
    }
  }
}

TEST(NuqSide, CalibratedRangesBelongToTheModelAndAreNotCounted) {
  const std::vector<float> rows = random_rows(64);
  int64_t bytes[2] = {};
  for (const Ranges ranges : {Ranges::kFitted, Ranges::kCalibrated}) {
    Fixture f(KvSide::kKey, 4, 0, ranges);
    NuqSide side(f.plan);
    EXPECT_EQ(side.is_fitted(), ranges == Ranges::kCalibrated);
    if (!side.is_fitted()) side.fit(Halves(rows), f.threads);
    side.append(Halves(rows, 40), f.threads);
    bytes[static_cast<int>(ranges)] = side.table_bytes();
  }
  EXPECT_EQ(bytes[0] - bytes[1], 2 * kRowSize * 2);  // scales and zero points
}

TEST(NuqSide, AppendedTokensNeverChangeEarlierOnes) {
  const std::vector<float> rows = random_rows(300);
  for (const KvSide kind : {KvSide::kKey, KvSide::kValue}) {
    for (const bool hadamard : {false, true}) {
      if (hadamard && kind == KvSide::kKey) continue;
      Fixture f(kind, 3, 2, Ranges::kCalibrated);
      f.plan.hadamard = hadamard;
      NuqSide whole(f.plan), pieces(f.plan);
      whole.append(Halves(rows, 100), f.threads);
      const std::vector<float> expected = contents(whole);
      int64_t first = 0;
      for (int64_t size = 1; first < 300; first += size, size = size * 3 % 71) {
        size = std::min<int64_t>(size, 300 - first);
        pieces.append(Halves(std::span(rows).subspan(first * kRowSize, size * kRowSize)),
                      f.threads);
        const std::vector<float> now = contents(pieces);
        const int64_t length = first + size, num_tiles = (length + 63) / 64;
        for (int64_t head = 0; head < kHeads; ++head) {
          for (int64_t c = 0; c < kHeadDim; ++c) {
            for (int64_t t = 0; t < length; ++t) {
              const int64_t in_tile = c * 64 + t % 64, tile_size = kHeadDim * 64;
              ASSERT_EQ(now[(head * num_tiles + t / 64) * tile_size + in_tile],
                        expected[(head * 5 + t / 64) * tile_size + in_tile])
                  << "token " << t << " of " << length;
            }
          }
        }
      }
      EXPECT_EQ(whole.table_bytes(), pieces.table_bytes());
    }
  }
}

}  // namespace
}  // namespace kvquant
