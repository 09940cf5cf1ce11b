#include "bench/energy_monitor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <thread>

#include "bench/energy_test_tree.h"

namespace kvquant {
namespace {

using test::PowercapTree;

constexpr const char* kNone = "/nonexistent";

EnergyOptions options_of(const PowercapTree& tree) {
  return {.sources = {tree.path(), kNone, -1}, .assume_power_watts = {}};
}

TEST(EnergyMonitor, ReadsWhatTheCountersTookBetweenStartAndStop) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 500, 1000000000);
  tree.add("intel-rapl:0:0", "dram", 0, 1000000000);
  EnergyOptions options = options_of(tree);
  options.carbon_kg_per_kwh = 0.5;
  EnergyMonitor monitor(options);
  tree.set("intel-rapl:0", "1000500");  // before the start: not counted
  monitor.start();
  tree.set("intel-rapl:0", "7000500");
  tree.set("intel-rapl:0:0", "1500000");
  const EnergyReading reading = monitor.stop();
  EXPECT_EQ(reading.kind, EnergyKind::kMeasured);
  EXPECT_DOUBLE_EQ(reading.energy_joules.value(), 7.5);
  EXPECT_DOUBLE_EQ(reading.carbon_kg.value(), 7.5 / 3.6e6 * 0.5);
  EXPECT_GT(reading.duration_s, 0);
  EXPECT_DOUBLE_EQ(reading.avg_power_watts.value(), 7.5 / reading.duration_s);
  EXPECT_EQ(reading.note, "measured by rapl package-0, rapl dram-0");
  ASSERT_EQ(reading.parts.size(), 2u);
  EXPECT_DOUBLE_EQ(reading.parts[1].joules, 1.5);
  EXPECT_FALSE(reading.idle_joules.has_value());
}

TEST(EnergyMonitor, SamplesInBetweenSoThatAWrapIsNotMissed) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 0, 9999999);
  EnergyOptions options = options_of(tree);
  options.sample_interval_s = 1e-3;
  EnergyMonitor monitor(options);
  monitor.start();
  for (const char* value : {"6000000", "2000000", "8000000", "4000000"}) {  // 6 J each
    tree.set("intel-rapl:0", value);
    // The reading under way may have seen the value before.
    const int64_t seen = monitor.meter().num_readings() + 2;
    while (monitor.meter().num_readings() < seen) std::this_thread::yield();
  }
  EXPECT_DOUBLE_EQ(monitor.stop().energy_joules.value(), 24);
}

TEST(EnergyMonitor, WithoutCountersHasNoFigureButTheReason) {
  EnergyMonitor monitor(EnergyOptions{.sources = {kNone, kNone, -1}, .assume_power_watts = {}});
  monitor.start();
  const EnergyReading reading = monitor.stop();
  EXPECT_EQ(reading.kind, EnergyKind::kNotMeasured);
  EXPECT_FALSE(reading.energy_joules || reading.avg_power_watts || reading.carbon_kg);
  EXPECT_EQ(describe(reading), "not measured (rapl: no intel-rapl zones in /nonexistent)");
  EXPECT_FALSE(monitor.meter().measure_idle(1e-3).has_value());
}

TEST(EnergyMonitor, AnAssumedPowerIsUsedOnlyWithoutCountersAndSaysThatItIsAssumed) {
  EnergyMonitor blind(EnergyOptions{.sources = {kNone, kNone, -1}, .assume_power_watts = 65});
  blind.start();
  const EnergyReading assumed = blind.stop();
  EXPECT_EQ(assumed.kind, EnergyKind::kAssumed);
  EXPECT_DOUBLE_EQ(assumed.energy_joules.value(), 65 * assumed.duration_s);
  EXPECT_NE(describe(assumed).find("assumed power of 65 W, not measured"), std::string::npos);
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 0, 1000000000);
  EnergyOptions options = options_of(tree);
  options.assume_power_watts = 65;
  EnergyMonitor seeing(options);
  seeing.start();
  tree.set("intel-rapl:0", "2000000");
  const EnergyReading measured = seeing.stop();
  EXPECT_EQ(measured.kind, EnergyKind::kMeasured);
  EXPECT_DOUBLE_EQ(measured.energy_joules.value(), 2);
}

TEST(EnergyMonitor, ACounterThatGoesAwayLeavesNoFigure) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 0, 1000);
  EnergyMonitor monitor(options_of(tree));
  monitor.start();
  tree.remove("intel-rapl:0");
  const EnergyReading reading = monitor.stop();
  EXPECT_EQ(reading.kind, EnergyKind::kNotMeasured);
  EXPECT_NE(reading.note.find("can't read"), std::string::npos);
}

TEST(EnergyMonitor, KnowsWhatAnIdleMachineWouldHaveTaken) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 0, 1000);
  EnergyMonitor monitor(options_of(tree));
  EXPECT_DOUBLE_EQ(monitor.meter().measure_idle(1e-3).value(), 0);
  monitor.start();
  EXPECT_DOUBLE_EQ(monitor.stop().idle_joules.value(), 0);
}

TEST(EnergyMonitor, SumsHaveAFigureWhenAllPartsHave) {
  const EnergyReading part = {.kind = EnergyKind::kMeasured,
                              .note = "measured",
                              .duration_s = 2,
                              .energy_joules = 6,
                              .carbon_kg = 1,
                              .parts = {{"a", EnergyPart::kCpu, 6}}};
  std::optional<EnergyReading> sum;
  add(sum, part);
  add(sum, part);
  EXPECT_DOUBLE_EQ(sum->duration_s, 4);
  EXPECT_DOUBLE_EQ(sum->energy_joules.value(), 12);
  EXPECT_DOUBLE_EQ(sum->avg_power_watts.value(), 3);
  EXPECT_DOUBLE_EQ(sum->parts[0].joules, 12);
  add(sum, {.note = "it went away", .duration_s = 1, .parts = {}});
  add(sum, part);
  EXPECT_EQ(sum->kind, EnergyKind::kNotMeasured);
  EXPECT_EQ(describe(*sum), "not measured (it went away)");
  EXPECT_DOUBLE_EQ(sum->duration_s, 7);
}

TEST(EnergyMonitor, StartAndStopTakeTurns) {
  EnergyMonitor monitor(EnergyOptions{.sources = {kNone, kNone, -1}, .assume_power_watts = {}});
  EXPECT_THROW(monitor.stop(), std::invalid_argument);
  monitor.start();
  EXPECT_THROW(monitor.start(), std::invalid_argument);
  monitor.stop();
  EXPECT_THROW(monitor.stop(), std::invalid_argument);
  EXPECT_THROW(EnergyMonitor(EnergyOptions{.assume_power_watts = -1}), std::invalid_argument);
  EXPECT_THROW(EnergyMonitor(EnergyOptions{.assume_power_watts = NAN}), std::invalid_argument);
  EXPECT_THROW(EnergyMonitor(EnergyOptions{.assume_power_watts = {}, .carbon_kg_per_kwh = -1}),
               std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
