// `kvquant sweep` with a grid that asks for quality: calibrations, perplexities, losses of layers.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::Outcome;

constexpr const char* kFew =
    "sweep -m embedded -t 1 --warmup 1 --min-repetitions 1 --max-repetitions 2 "
    "--powercap /nonexistent ";

class SweepQualityRun : public test::ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    std::string text;
    for (int i = 0; i < 400; ++i) text += "The keeper wrote " + std::to_string(i * 37) + " down. ";
    write_file_atomic(path("text.txt"), text);
  }

  // `calibrations` as in a grid.
  std::string sweep(const std::string& calibrations, const std::string& more = "") const {
    write_file_atomic(path("grid.json"),
                      R"({"prompt": [16], "batch": [1], "gen": 2, "kv": ["fp16", "nuq3"],
                          "quality": {"context": 64, "windows": 1)" +
                          (calibrations.empty() ? "" : R"(, "calibrations": )" + calibrations) +
                          more + "}}");
    return kFew + ("-o " + path("results") + " --grid " + path("grid.json") + " ");
  }

  // The one file whose name begins so.
  std::string file_of(const std::string& begin) const {
    std::string found;
    for (const auto& entry : fs::directory_iterator(path("results"))) {
      const std::string name = entry.path().filename().string();
      if (name.rfind(begin + "-", 0) != 0) continue;
      EXPECT_EQ(found, "") << begin;
      found = entry.path().string();
    }
    return found;
  }
};

constexpr const char* kTwo = R"({"exact": {"data": "text.txt", "samples": 1, "seq_len": 64},
    "even": {"data": "text.txt", "samples": 1, "seq_len": 64, "codebook": "uniform"}})";

TEST_F(SweepQualityRun, IsMeasuredWithEveryCalibrationAndNotTwice) {
  const std::string command = sweep(kTwo);
  const Outcome outcome = run(command);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"| KL mean", "exact-", "even-", "| nuq3"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
  }
  const Json exact = Json::parse(read_text(file_of("quality_exact")));
  const Json even = Json::parse(read_text(file_of("quality_even")));
  EXPECT_EQ(exact.at("command"), "perplexity");
  EXPECT_EQ(exact.at("config").at("window"), 64);
  ASSERT_EQ(exact.at("results").size(), 2u);
  EXPECT_EQ(exact.at("results")[1].at("spec"), "nuq3");
  EXPECT_NE(exact.at("results")[1].at("kl_mean"), even.at("results")[1].at("kl_mean"));
  EXPECT_NE(exact.at("config").at("calibration").at("fingerprint"),
            even.at("config").at("calibration").at("fingerprint"));

  const auto written = fs::last_write_time(file_of("quality_exact"));
  fs::remove(file_of("quality_even"));
  EXPECT_NE(run(command + "--list").out.find("missing  perplexity, even"), std::string::npos);
  const Outcome again = run(command);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.err.find("calibration, "), std::string::npos) << again.err;
  EXPECT_EQ(again.err.find("perplexity, exact"), std::string::npos) << again.err;
  EXPECT_NE(file_of("quality_even"), "");
  EXPECT_EQ(fs::last_write_time(file_of("quality_exact")), written);
}

TEST_F(SweepQualityRun, TakesTheCalibrationOfTheSweepOrNone) {
  EXPECT_EQ(run(sweep("")).code, 0);
  const Json none = Json::parse(read_text(file_of("quality_uncalibrated")));
  EXPECT_TRUE(none.at("config").at("calibration").is_null());
  ASSERT_EQ(run("calibrate -m embedded -q --samples 1 --seq-len 64 --data " + path("text.txt") +
                " -o " + path("mine.safetensors"))
                .code,
            0);
  const std::string with = sweep("") + "--calib " + path("mine.safetensors");
  EXPECT_EQ(run(with).code, 0);
  EXPECT_NE(file_of("quality_mine"), "");
  expect_refused(sweep(kTwo) + "--calib " + path("mine.safetensors"), "calibrations of its own");
}

TEST_F(SweepQualityRun, SaysWhatALayerLoses) {
  const Outcome outcome =
      run(sweep("", R"(, "sensitivity": {"bits": 12, "codecs": ["nuq2", "nuq4"]})"));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const Json document = Json::parse(read_text(file_of("sensitivity_uncalibrated")));
  EXPECT_EQ(document.at("command"), "allocate");
  EXPECT_GT(document.at("sensitivity").size(), 4u);
}

TEST_F(SweepQualityRun, AStepThatFailsIsNamedAndTheOthersGoOn) {
  const Outcome outcome = run(sweep(R"({"bad": {"data": "nowhere.txt"},
      "good": {"data": "text.txt", "samples": 1, "seq_len": 64}})"));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find("calibration, bad failed: ended with exit code 2: "),
            std::string::npos)
      << outcome.err;
  EXPECT_NE(outcome.err.find("perplexity, bad failed: "), std::string::npos) << outcome.err;
  EXPECT_NE(file_of("quality_good"), "");
  EXPECT_EQ(file_of("quality_bad"), "");
}

TEST_F(SweepQualityRun, MistakesAreRefusedBeforeAnythingIsMeasured) {
  expect_refused(sweep(R"({"a": {"codebok": "exact"}})"), "quality.calibrations.a: unknown key");
  EXPECT_FALSE(fs::exists(path("results")));
}

TEST_F(SweepQualityRun, AFileThatIsNoResultIsNamed) {
  const std::string command = sweep("");
  ASSERT_EQ(run(command).code, 0);
  for (const char* text : {"{", "[]", R"({"schema": 9, "results": []})"}) {
    write_file_atomic(file_of("quality_uncalibrated"), std::string(text));
    expect_refused(command, "not a result of this schema: move it away");
  }
}

}  // namespace
}  // namespace kvquant
