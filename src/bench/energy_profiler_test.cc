#include "bench/energy_profiler.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <stdexcept>

#include "bench/energy_test_tree.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::PowercapTree;

class EnergyProfiler : public testing::Test {
 protected:
  void SetUp() override { tree_.add("intel-rapl:0", "package-0", 0, 1000000000); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  EnergyOptions options() const {
    return {.sources = {tree_.path(), "/nonexistent", -1}, .assume_power_watts = {}};
  }
  Json saved() const { return Json::parse(read_text(folder_ + "/energy_summary.json")); }

  PowercapTree tree_;
  std::string folder_ = test::test_path("energy");
};

TEST_F(EnergyProfiler, SumsTheScopesOfAnOperationAndDividesByItsTokens) {
  DetailedEnergyProfiler profiler(folder_, options());
  {
    auto prefill = profiler.profile("prefill");
    tree_.set("intel-rapl:0", "4000000");
    prefill.set_tokens(100);
  }
  for (const char* energy : {"5000000", "6000000"}) {
    auto decode = profiler.profile("decode");
    tree_.set("intel-rapl:0", energy);
    decode.set_tokens(2);
    decode.finish();
    decode.finish();
  }
  profiler.save_summary();
  const Json summary = saved();
  EXPECT_EQ(summary.at("schema"), 1);
  EXPECT_EQ(summary.at("config").at("counters"), Json({"rapl package-0"}));
  const Json& results = summary.at("results");
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].at("operation"), "prefill");
  EXPECT_DOUBLE_EQ(results[0].at("joules_per_token"), 0.04);
  EXPECT_EQ(results[1].at("count"), 2);
  EXPECT_EQ(results[1].at("energy"), "measured");
  EXPECT_DOUBLE_EQ(results[1].at("energy_joules"), 2);
  EXPECT_DOUBLE_EQ(results[1].at("joules_per_token"), 0.5);
}

TEST_F(EnergyProfiler, WritesARowPerScope) {
  DetailedEnergyProfiler profiler(folder_, options());
  profiler.save_summary();
  const std::string header =
      "timestamp,operation,duration_sec,energy_joules,avg_power_watts,carbon_kg\n";
  EXPECT_EQ(read_text(folder_ + "/energy_measurements.csv"), header);
  auto outer = profiler.profile("outer");
  profiler.profile("inner, nested").finish();
  outer.finish();
  profiler.save_summary();
  const std::string text = read_text(folder_ + "/energy_measurements.csv");
  EXPECT_EQ(text.rfind(header, 0), 0u);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_LT(text.find("\"inner, nested\","), text.find(",outer,"));
}

TEST_F(EnergyProfiler, WithoutCountersLeavesFieldsEmptyAndLabelsWhatIsAssumed) {
  EnergyOptions blind = options();
  blind.sources.powercap = "/nonexistent";
  DetailedEnergyProfiler without(folder_, blind);
  without.profile("x").finish();
  without.save_summary();
  EXPECT_TRUE(saved().at("results")[0].at("energy_joules").is_null());
  EXPECT_EQ(saved().at("results")[0].at("energy"), "not measured");
  EXPECT_EQ(without.csv().substr(without.csv().size() - 4), ",,,\n");
  blind.assume_power_watts = 10;
  DetailedEnergyProfiler assumed(folder_, blind);
  assumed.profile("x").finish();
  assumed.save_summary();
  EXPECT_EQ(saved().at("results")[0].at("energy"), "assumed");
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/energy_assumed.csv"));
}

TEST_F(EnergyProfiler, RefusesWhatItCannotWrite) {
  EXPECT_THROW(DetailedEnergyProfiler("/proc/nonexistent", options()), IoError);
  DetailedEnergyProfiler profiler(folder_, options());
  EXPECT_THROW(profiler.profile(""), std::invalid_argument);
  EXPECT_THROW(profiler.profile("two\nlines"), std::invalid_argument);
  EXPECT_THROW(profiler.profile("x").set_tokens(-1), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
