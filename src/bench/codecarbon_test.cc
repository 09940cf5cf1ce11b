#include "bench/codecarbon.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "base/file.h"
#include "base/test_path.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

EnergyReading reading() {
  EnergyReading out;
  out.kind = EnergyKind::kMeasured;
  out.note = "measured by rapl package-0";
  out.duration_s = 10;
  out.energy_joules = 3.6e6;
  out.avg_power_watts = 3.6e5;
  out.carbon_kg = 0.5;
  out.parts = {{"rapl package-0", EnergyPart::kCpu, 3.6e6}};
  return out;
}

TEST(CodeCarbon, ARowHasTheColumnsOfTheHeader) {
  const std::string row =
      codecarbon_row(reading(), {.timestamp = "2026-11-22T18:40:06", .country_iso_code = "FR"});
  EXPECT_EQ(row.rfind("2026-11-22T18:40:06,kvquant,", 0), 0u);
  // duration, emissions, rate, power of cpu, gpu and memory, energy of the three, sum
  EXPECT_NE(row.find(",10.0,0.5,0.05,360000.0,,,1.0,,,1.0,,FR,"), std::string::npos) << row;
  EXPECT_NE(row.find(",machine,N,1.0\n"), std::string::npos) << row;
  EnergyReading assumed = reading();
  assumed.kind = EnergyKind::kAssumed;
  EXPECT_NE(codecarbon_row(assumed, {}).find(",assumed,N,1.0\n"), std::string::npos);
  EnergyReading nothing;
  EXPECT_THROW(codecarbon_row(nothing, {}), std::invalid_argument);
}

TEST(CodeCarbon, RunsAreAppendedUnderOneHeader) {
  const std::string path = test::test_path("emissions.csv");
  std::filesystem::remove(path);
  append_codecarbon(path, reading(), {});
  append_codecarbon(path, reading(), {});
  const std::string text = read_text(path);
  EXPECT_EQ(text.rfind(kCodeCarbonHeader, 0), 0u);
  EXPECT_EQ(text.find(kCodeCarbonHeader, 1), std::string::npos);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  write_file_atomic(path, "a,b\n1,2\n");
  EXPECT_THROW(append_codecarbon(path, reading(), {}), FormatError);
  EXPECT_EQ(read_text(path), "a,b\n1,2\n");
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace kvquant
