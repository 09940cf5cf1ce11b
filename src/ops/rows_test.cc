#include "ops/rows.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvquant {
namespace {

// Calls fn with every instruction set of this CPU forced in turn.
template <class Fn>
void on_every_target(const Fn& fn) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    fn(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
}

std::vector<Half> all_finite_halfs() {
  std::vector<Half> out;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7C00) != 0x7C00) out.push_back({static_cast<uint16_t>(bits)});
  }
  return out;
}

TEST(Rows, WidensEveryFiniteHalfExactly) {
  const auto halfs = all_finite_halfs();
  on_every_target([&](const char* target) {
    std::vector<float> out(halfs.size());
    widen(halfs, out.data());
    for (size_t i = 0; i < halfs.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(to_float(halfs[i])))
          << target << " " << halfs[i].bits;
    }
  });
}

TEST(Rows, NarrowsEveryHalfItsMiddlesAndTheirNeighboursAsTheReference) {
  std::vector<float> x;
  for (const Half half : all_finite_halfs()) {
    const float at = to_float(half);
    const float next = to_float(Half{static_cast<uint16_t>(half.bits + 1)});
    x.push_back(at);
    if (!std::isfinite(next)) continue;
    const float middle = at / 2 + next / 2;
    for (const float limit : {-HUGE_VALF, HUGE_VALF}) x.push_back(std::nextafter(middle, limit));
    x.push_back(middle);
  }
  on_every_target([&](const char* target) {
    std::vector<Half> out(x.size());
    narrow(x, out.data());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(out[i].bits, to_half(x[i]).bits) << target << " " << x[i];
    }
  });
}

TEST(Rows, WriteNothingBehindAnyLength) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(70);
  for (float& v : x) v = normal(rng);
  on_every_target([&](const char* target) {
    for (size_t size = 0; size <= 69; ++size) {
      std::vector<Half> halfs(size + 1, Half{0x1234});
      narrow(std::span(x).first(size), halfs.data());
      std::vector<float> floats(size + 1, 77.0f);
      widen(std::span(halfs).first(size), floats.data());
      EXPECT_EQ(halfs[size].bits, 0x1234) << target << " " << size;
      EXPECT_EQ(floats[size], 77.0f) << target << " " << size;
      for (size_t i = 0; i < size; ++i) ASSERT_EQ(floats[i], round_to_half(x[i])) << target;
    }
  });
}

TEST(Rows, AreWithinUnlessOneNumberIsLargerOrNone) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  on_every_target([&](const char* target) {
    EXPECT_TRUE(are_within({}, 1)) << target;
    for (const size_t size : {1, 7, 16, 17, 33, 64, 69}) {
      for (size_t at = 0; at < size; ++at) {
        std::vector<float> x(size, 0.5f);
        for (const float edge : {2.0f, -2.0f}) {
          x[at] = edge;
          EXPECT_TRUE(are_within(x, 2)) << target << " " << at;
          x[at] = std::nextafter(edge, 2 * edge);
          EXPECT_FALSE(are_within(x, 2)) << target << " " << at;
        }
        for (const float bad : {kNaN, HUGE_VALF, -HUGE_VALF}) {
          x[at] = bad;
          EXPECT_FALSE(are_within(x, std::numeric_limits<float>::max())) << target << " " << at;
        }
      }
    }
  });
}

TEST(Rows, CountWhatLiesOutsideOfEachChannelsRange) {
  on_every_target([&](const char* target) {
    for (size_t size = 0; size <= 69; ++size) {
      std::vector<float> x(size), low(size), high(size);
      int64_t expected = 0;
      for (size_t i = 0; i < size; ++i) {
        low[i] = static_cast<float>(i);
        high[i] = low[i] + 1;
        const float places[] = {low[i], high[i], std::nextafter(low[i], -1.0f), high[i] + 1};
        x[i] = places[i % 4];  // the ends belong to it
        expected += i % 4 >= 2 ? 1 : 0;
      }
      EXPECT_EQ(num_outside(x, low.data(), high.data()), expected) << target << " " << size;
    }
  });
}

TEST(Rows, RangesCoverEveryRowOnce) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  for (const int64_t num_rows : {0, 1, 15, 16, 17, 100}) {
    std::vector<int> seen(static_cast<size_t>(num_rows));
    for_row_ranges(num_rows, pool, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(num_rows), 1));
  }
}

}  // namespace
}  // namespace kvquant
