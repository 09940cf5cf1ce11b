// What `kvquant energy` says of a machine with counters, and of one without.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

using Json = nlohmann::json;
using test::Outcome;

constexpr const char* kFakeGpu = " --powercap /nonexistent --nvml " KVQUANT_FAKE_NVML " ";
constexpr const char* kNoCounter = " --powercap /nonexistent --nvml /nonexistent ";

class Energy : public test::ProgramTest {
 protected:
  Json document() const { return Json::parse(read_text(path("energy.json"))); }
};

TEST_F(Energy, OfACommandIsMeasuredAndItsExitCodePassedOn) {
  const Outcome outcome = run("energy" + std::string(kFakeGpu) + "--tokens 3 --json " +
                              path("energy.json") + " -- sh -c 'echo out; exit 7'");
  EXPECT_EQ(outcome.code, 7);
  EXPECT_EQ(outcome.out, "out\n");
  EXPECT_NE(outcome.err.find("energy: 1.5 J"), std::string::npos) << outcome.err;
  const Json result = document().at("results")[0];
  EXPECT_EQ(result.at("energy"), "measured");
  EXPECT_DOUBLE_EQ(result.at("joules_per_token"), 0.5);
  EXPECT_EQ(result.at("exit_code"), 7);
}

TEST_F(Energy, IsNotMadeUpWhereThereIsNoCounter) {
  const std::string command = "energy" + std::string(kNoCounter) + "--json " + path("energy.json");
  EXPECT_NE(run(command).out.find("energy: not measured (rapl: no intel-rapl zones"),
            std::string::npos);
  EXPECT_EQ(run(command + " -- true").code, 0);
  EXPECT_TRUE(document().at("results")[0].at("energy_joules").is_null());
  EXPECT_EQ(run(command + " --assume-power 65 -- true").code, 0);
  EXPECT_EQ(document().at("results")[0].at("energy"), "assumed");
  const Outcome outcome =
      run("energy" + std::string(kNoCounter) + "--csv " + path("e.csv") + " -- true");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("CodeCarbon: energy was not measured"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path("e.csv")));
}

TEST_F(Energy, AppendsRowsForProgramsThatReadCodeCarbon) {
  const std::string command =
      "energy" + std::string(kFakeGpu) + "--region DE --csv " + path("emissions.csv") + " -- true";
  EXPECT_EQ(run(command).code, 0);
  EXPECT_EQ(run(command).code, 0);
  const std::string text = read_text(path("emissions.csv"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_NE(text.find(",DEU,"), std::string::npos);
}

TEST_F(Energy, AScenarioIsOfAYear) {
  const Outcome outcome = run("energy" + std::string(kNoCounter) +
                              "--tokens-per-day 1e6 --joules-per-token 3.6 "
                              "--carbon-intensity 0.5 --price 0.2");
  EXPECT_NE(outcome.out.find("365 kWh, 182.5 kg CO2, 73.00 a year"), std::string::npos)
      << outcome.out;
}

TEST_F(Energy, RegionsSayTheirYearAndSource) {
  const Outcome outcome = run("energy --regions");
  EXPECT_EQ(outcome.code, 0);
  for (const char* part : {"| world", "| US", "0.379", "2021", "Our World in Data"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
  }
}

TEST_F(Energy, WrongFlagsAreRefused) {
  expect_refused("energy --region atlantis", "no carbon intensity is known of region 'atlantis'");
  expect_refused("energy --assume-power -1", "is not a number of at least 0");
  expect_refused("energy --assume-power nan", "is not a number of at least 0");
  expect_refused("energy --csv x.csv", "--csv needs a command");
  expect_refused("energy --tokens-per-day 5", "--tokens-per-day needs");
  expect_refused("energy -- /nonexistent/program", "can't run /nonexistent/program");
}

}  // namespace
}  // namespace kvquant
