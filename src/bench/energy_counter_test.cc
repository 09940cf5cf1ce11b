#include "bench/energy_counter.h"

#include <gtest/gtest.h>

#include "bench/energy_test_tree.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::PowercapTree;

constexpr const char* kFakeNvml = KVQUANT_FAKE_NVML;

TEST(Rapl, PackagesAndTheirMemoryAreCountedAndPartsOfPackagesAreNot) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 1000000, 262143328850);
  tree.add("intel-rapl:0:0", "core", 5, 262143328850);
  tree.add("intel-rapl:0:1", "dram", 7, 65712999613);
  tree.add("intel-rapl:1", "package-1", 0, 262143328850);
  tree.add("intel-rapl:2", "psys", 9, 262143328850);
  tree.add("intel-rapl-mmio:0", "package-0", 1000000, 262143328850);
  const EnergyCounters found = find_rapl(tree.path());
  EXPECT_TRUE(found.missing.empty());
  ASSERT_EQ(found.counters.size(), 3u);
  EXPECT_EQ(found.counters[0]->name(), "rapl package-0");
  EXPECT_EQ(found.counters[1]->name(), "rapl dram-0");
  EXPECT_EQ(found.counters[2]->name(), "rapl package-1");
  EXPECT_EQ(found.counters[1]->part(), EnergyPart::kMemory);
  tree.set("intel-rapl:0", "3500000");
  tree.set("intel-rapl:0:1", "1000007");
  EXPECT_DOUBLE_EQ(found.counters[0]->joules(), 2.5);
  EXPECT_DOUBLE_EQ(found.counters[1]->joules(), 1);
  EXPECT_DOUBLE_EQ(found.counters[2]->joules(), 0);
}

TEST(Rapl, ACounterThatWrapsAroundGoesOn) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 9999000, 9999999);
  const EnergyCounters found = find_rapl(tree.path());
  tree.set("intel-rapl:0", "1000000");  // 1000 to its end, then 1000000 more
  EXPECT_DOUBLE_EQ(found.counters[0]->joules(), 1.001);
  tree.set("intel-rapl:0", "9999999");
  EXPECT_DOUBLE_EQ(found.counters[0]->joules(), 1.001 + 8.999999);
  tree.set("intel-rapl:0", "0");
  EXPECT_DOUBLE_EQ(found.counters[0]->joules(), 1.001 + 9);
}

TEST(Rapl, WhatCannotBeReadIsNamedAndTheRestIsCounted) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 0, 100);
  tree.add("intel-rapl:1", "package-1", 0, 100);
  tree.set("intel-rapl:1", "many");
  tree.add("intel-rapl:2", "package-2", 0, 100);
  tree.remove("intel-rapl:2");
  const EnergyCounters found = find_rapl(tree.path());
  ASSERT_EQ(found.counters.size(), 1u);
  ASSERT_EQ(found.missing.size(), 2u);
  EXPECT_NE(found.missing[0].find("\"many\" is not a number of microjoules"), std::string::npos);
  EXPECT_NE(found.missing[1].find("No such file"), std::string::npos) << found.missing[1];
  tree.remove("intel-rapl:0");
  EXPECT_THROW(found.counters[0]->joules(), DeviceError);
}

TEST(Rapl, AMachineWithoutItHasNoCountersButAReason) {
  const EnergyCounters found = find_rapl("/nonexistent");
  EXPECT_TRUE(found.counters.empty());
  ASSERT_EQ(found.missing.size(), 1u);
  EXPECT_EQ(found.missing[0], "rapl: no intel-rapl zones in /nonexistent");
}

TEST(Nvml, CountsTheEnergyOfItsGpu) {
  const EnergyCounters found = find_nvml(kFakeNvml, 0);
  ASSERT_EQ(found.counters.size(), 1u) << found.missing[0];
  EXPECT_EQ(found.counters[0]->name(), "nvml 0 (Fake GPU)");
  EXPECT_EQ(found.counters[0]->part(), EnergyPart::kGpu);
  EXPECT_DOUBLE_EQ(found.counters[0]->joules(), 1.5);
  EXPECT_DOUBLE_EQ(found.counters[0]->joules(), 3);
}

TEST(Nvml, SaysWhyThereIsNoCounter) {
  const auto why = [](const std::string& library, int gpu_id) {
    const EnergyCounters found = find_nvml(library, gpu_id);
    EXPECT_TRUE(found.counters.empty());
    return found.missing.at(0);
  };
  EXPECT_EQ(why(kFakeNvml, 1), "nvml: total energy: Not Supported");
  EXPECT_EQ(why(kFakeNvml, 7), "nvml: GPU 7: Invalid Argument");
  EXPECT_NE(why("/nonexistent/libnvidia-ml.so.1", 0).find("No such file"), std::string::npos);
  EXPECT_EQ(why("libm.so.6", 0), "nvml: it has no nvmlInit_v2");
}

TEST(EnergyCounters, OfAllSourcesComeTogether) {
  const PowercapTree tree;
  tree.add("intel-rapl:0", "package-0", 0, 100);
  EXPECT_EQ(find_energy_counters({tree.path(), kFakeNvml, 0}).counters.size(), 2u);
  EXPECT_EQ(find_energy_counters({tree.path(), kFakeNvml, 1}).missing.size(), 1u);
  const EnergyCounters none = find_energy_counters({"/nonexistent", "/nonexistent", -1});
  EXPECT_EQ(none.missing.size(), 1u);  // GPUs were not asked
}

}  // namespace
}  // namespace kvquant
