// kvquant presets, and --preset elsewhere, as a user meets them.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "kvquant/preset.h"
#include "model/presets.h"
#include "program.h"

namespace kvquant {
namespace {

using test::Outcome;

class PresetProgram : public test::ProgramTest {
 protected:
  void save(const std::string& name, const std::string& spec, const std::string& calibration) {
    Preset preset;
    preset.name = name;
    preset.spec = spec;
    preset.calibration_file = calibration;
    describe_preset(preset, preset_model(*open_checkpoint(KVQUANT_SOURCE_DIR "/assets/ref5m")));
    save_preset(preset, path(name + ".json"));
  }
  void calibrate(const std::string& name) const {
    const Outcome outcome = run("calibrate -m embedded --samples 1 --seq-len 64 -o " + path(name));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
};

TEST_F(PresetProgram, BringsItsSpecAndItsCalibration) {
  calibrate("c.safetensors");
  save("low", "v=pca48+int8", "c.safetensors");
  const std::string rest = " -m embedded -c 64 --windows 1 --json - ";
  const Outcome outcome = run("perplexity --preset " + path("low.json") + " --kv int8" + rest);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(document.at("results").size(), 2u);
  EXPECT_EQ(document.at("results")[1].at("spec"), "v=pca48+int8");
  EXPECT_EQ(document.at("config").at("calibration").at("path"), path("c.safetensors"));
  // By hand the same.
  const Outcome by_hand =
      run("perplexity --kv v=pca48+int8 --calib " + path("c.safetensors") + rest);
  EXPECT_EQ(nlohmann::json::parse(by_hand.out).at("results")[0], document.at("results")[1]);
}

TEST_F(PresetProgram, IsRefusedByNameWhereItDoesNotFit) {
  const std::string tail = " -p a -n 1";
  save("lost", "v=pca48+int8", "nowhere.safetensors");
  expect_refused("generate -m embedded --preset " + path("lost.json") + tail,
                 "Calibration file not found: " + path("nowhere.safetensors"));
  calibrate("c.safetensors");
  calibrate("d.safetensors");
  save("good", "v=pca48+int8", "c.safetensors");
  const std::string good = " --preset " + path("good.json") + tail;
  EXPECT_EQ(run("generate -m embedded" + good).code, 0);
  EXPECT_EQ(run("generate -m embedded --calib " + path("c.safetensors") + good).code, 0);
  expect_refused("generate -m embedded --calib " + path("d.safetensors") + good,
                 "exclude each other");
  expect_refused("generate -m embedded -ctk int8" + good, "--preset and -ctk/-ctv");
  expect_refused("generate -m " KVQUANT_SOURCE_DIR "/tests/golden/tiny_yarn" + good,
                 "head_dim 64, model \"tiny_yarn\" has 16");
  expect_refused("generate -m embedded --preset nothing" + tail, "\"nothing\" is neither a file");
  write_file_atomic(path("bad.json"), "{\"model\": 1}");
  expect_refused("generate -m embedded --preset " + path("bad.json") + tail, path("bad.json"));
}

TEST_F(PresetProgram, ListsAndShows) {
  const Outcome list = run("presets --json -");
  ASSERT_EQ(list.code, 0) << list.err;
  EXPECT_EQ(nlohmann::json::parse(list.out).at("command"), "presets");
  const Outcome one = run("presets -m embedded r48-vonly-int8");
  ASSERT_EQ(one.code, 0) << one.err;
  EXPECT_NE(one.out.find("v=pca48+int8"), std::string::npos) << one.out;
  EXPECT_NE(one.out.find("not measured"), std::string::npos) << one.out;
  expect_refused("presets -m embedded r48-value", "\"r48-value\" is neither");
}

}  // namespace
}  // namespace kvquant
