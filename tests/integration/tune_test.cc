// kvquant tune as a user meets it.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "kvquant/preset.h"
#include "program.h"

namespace kvquant {
namespace {

using test::Outcome;

class TuneProgram : public test::ProgramTest {
 protected:
  std::string arguments(const std::string& more) const {
    return "tune -m embedded -c 128 --windows 2 --test-windows 2 --samples 1 --seq-len 128 -o " +
           path("p.json") + " " + more;
  }
  bool exists(const std::string& name) const { return std::filesystem::exists(path(name)); }
};

TEST_F(TuneProgram, WritesAPresetThatCommandsUse) {
  const std::string tuned = arguments(
      "--rank-grid 64,32 --bits-options 8 --codecs int8 --kv k=nuq4-1%,v=had+nuq4 "
      "--target-ppl-delta 0.3 --json " +
      path("r.json"));
  const Outcome outcome = run(tuned);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Preset preset = load_preset(path("p.json"));
  EXPECT_EQ(preset.name, "p");
  EXPECT_EQ(preset.spec, "k=nuq4-1%,v=had+nuq4");
  EXPECT_EQ(preset.calibration_file, "p.safetensors");
  EXPECT_EQ(preset.compression_ratio, 16 / *preset.true_bits);
  EXPECT_LE(*preset.ppl_delta, 0.3);
  EXPECT_EQ(preset.eval_text_sha256.size(), 64u);
  EXPECT_FALSE(preset.pareto.empty());
  const auto document = nlohmann::json::parse(read_text(path("r.json")));
  EXPECT_EQ(document.at("results").size(), 4u);
  EXPECT_EQ(document.at("preset").at("spec"), preset.spec);
  EXPECT_LT(std::filesystem::file_size(path("p.safetensors")),
            std::filesystem::file_size(path("p.tune.safetensors")) / 4);

  const Outcome used = run("generate -m embedded --preset " + path("p.json") + " -p The -n 3");
  EXPECT_EQ(used.code, 0) << used.err;
  expect_refused(
      "generate -m embedded --kv k=nuq3,v=nuq3 -p The -n 3 --calib " + path("p.safetensors"),
      "holds only what k=nuq4-1%");

  // Once more: nothing is done again, and the files are the same.
  const std::string before = read_text(path("p.json")), log = read_text(path("p.tune.jsonl"));
  const Outcome again = run(tuned);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("calibrated already"), std::string::npos) << again.err;
  EXPECT_EQ(read_text(path("p.json")), before);
  EXPECT_EQ(read_text(path("p.tune.jsonl")), log);
}

TEST_F(TuneProgram, WritesNothingWhenNothingPasses) {
  const Outcome outcome =
      run(arguments("--rank-grid none --kv nuq2 --kv fp16 --target-ppl-delta 0.01"));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find("PPL degradation too high"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("raise the rank"), std::string::npos) << outcome.err;
  EXPECT_FALSE(exists("p.json"));
  EXPECT_FALSE(exists("p.safetensors"));
}

TEST_F(TuneProgram, RefusesBadInputBeforeTheWork) {
  expect_refused(arguments("--target-ppl-delta -0.1"), "--target-ppl-delta is -0.1");
  expect_refused(arguments("--target-ppl-delta nan"), "--target-ppl-delta is nan");
  expect_refused(arguments("--rank-grid 0"), "rank 0 is not in [1, 64]");
  expect_refused(arguments("--rank-grid 65"), "rank 65 is not in [1, 64]");
  expect_refused(arguments("--rank-grid many"), "\"many\" is neither a rank nor none");
  expect_refused(arguments("--bits-options 5"), "latents of 5 bits");
  expect_refused("tune -m embedded --windows 1000 -o " + path("p.json"),
                 "too short to be disjoint");
  expect_refused(arguments("--calib " + path("none")), "Calibration file not found");
  write_file_atomic(path("short.txt"), "A few words only.");
  expect_refused(arguments("--data " + path("short.txt")), "too short to be disjoint");
  expect_refused("tune -m embedded -o " + path("no/folder.json"), "no/folder.json");
  EXPECT_FALSE(exists("p.tune.jsonl"));
}

}  // namespace
}  // namespace kvquant
