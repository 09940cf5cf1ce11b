#include "bench/harness_timing.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <vector>

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

TEST(HarnessTiming, BothPhasesAreTimedAndEnergyIsReadAroundThem) {
  Model model = Model::load(kEmbedded);
  EnergyMeter meter({.sources = {"/nonexistent", KVQUANT_FAKE_NVML, 0}, .sample_interval_s = 1e6});
  SweepPoint point{.prompt = 64, .batch = 2, .gen = 2, .spec = parse_spec("nuq4")};
  const int64_t readings = meter.num_readings();
  const PhaseTimes times = time_phases(model, point, {.repetitions = 3, .energy = &meter});
  EXPECT_GT(times.prefill_s, 0);
  EXPECT_GT(times.decode_s, 0);
  EXPECT_EQ(meter.num_readings() - readings, 2 * 2 * (3 + 1));  // ends of phases' repetitions
  point.batch = 0;
  EXPECT_THROW(time_phases(model, point, {}), std::invalid_argument);
}

TEST(HarnessTiming, RatiosAreOfTheSameRound) {
  // A machine that slows down touches both alike.
  const std::vector<double> base = {1, 2, 3, 4, 5, 6, 7}, x = {1.1, 2.2, 3.3, 4.4, 5.5, 6.6, 14};
  const RatioEstimate ratio = estimate_ratio(x, base);
  EXPECT_DOUBLE_EQ(ratio.median, 1.1);
  EXPECT_DOUBLE_EQ(ratio.low, 1.1);
  EXPECT_DOUBLE_EQ(ratio.high, 2);  // seven rounds: none can be left out
  EXPECT_THROW(estimate_ratio(x, {base.data(), 6}), std::invalid_argument);
  EXPECT_THROW(estimate_ratio({x.data(), 5}, {base.data(), 5}), std::invalid_argument);
}

// Tables of the sign test: intervals from the 2nd to the 8th of 9, the 6th to the 15th of 20.
TEST(HarnessTiming, TheIntervalIsThatOfTheSignTest) {
  for (const auto& [n, first] : {std::pair{6, 1}, {8, 1}, {9, 2}, {12, 3}, {20, 6}}) {
    std::vector<double> x;
    for (int i = 1; i <= n; ++i) x.push_back(i);
    const RatioEstimate ratio = estimate_ratio(x, std::vector<double>(x.size(), 1));
    EXPECT_EQ(ratio.low, first) << n;
    EXPECT_EQ(ratio.high, n + 1 - first) << n;
  }
}

TEST(HarnessTiming, TheIntervalHoldsTheMedianNineteenTimesInTwenty) {
  std::mt19937 rng(42);
  std::lognormal_distribution<double> skewed(0, 1);  // median 1
  int inside = 0;
  constexpr int kTrials = 2000;
  for (int i = 0; i < kTrials; ++i) {
    std::vector<double> x(20);
    for (double& value : x) value = skewed(rng);
    const RatioEstimate ratio = estimate_ratio(x, std::vector<double>(x.size(), 1));
    inside += ratio.low <= 1 && 1 <= ratio.high ? 1 : 0;
  }
  EXPECT_GT(inside, kTrials * 94 / 100);
  EXPECT_LT(inside, kTrials * 98 / 100);
}

}  // namespace
}  // namespace kvquant
