// Values and keys as latents, from calibration to text, as a user meets them.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "program.h"

namespace kvquant {
namespace {

using test::Outcome;

class LowRank : public test::ProgramTest {
 protected:
  void calibrate(const std::string& more = "") const {
    const Outcome outcome =
        run("calibrate -m embedded --samples 4 --seq-len 512 -q -o " + path("c") + " " + more);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
  std::vector<nlohmann::json> perplexity(const std::string& arguments) const {
    const Outcome outcome = run("perplexity -m embedded -q --json - -c 512 --windows 2 --calib " +
                                path("c") + " " + arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return nlohmann::json::parse(outcome.out).at("results");
  }
};

TEST_F(LowRank, DivergenceFallsWithRankAndVanishesAtFullRank) {
  calibrate();
  for (const std::string start : {"--kv v=pca", "--kv v=pcaw", "--as-served --ub 100 --kv v=pca"}) {
    std::string specs = start + "16";
    const std::string more = start.substr(start.find("--kv"));
    for (const char* rank : {"32", "48", "60", "64"}) specs += " " + more + rank;
    double before = 1e9;
    for (const auto& result : perplexity(specs)) {
      const auto kl = result.at("kl_mean").get<double>();
      EXPECT_LT(kl, before) << result.at("spec");
      before = kl;
    }
    EXPECT_LT(before, 1e-3) << start;
    EXPECT_GT(before, 0);
  }
}

TEST_F(LowRank, DivergenceOfKeysFallsWithRankAndVanishesAtFullRank) {
  calibrate();
  for (const std::string start : {"", "--as-served --ub 100 "}) {
    for (const std::string values : {"", ",v=pca64+int8"}) {
      std::string specs = start;
      for (const char* rank : {"16", "32", "48", "60", "64"}) {
        specs += std::string(" --kv k=pca") + rank + values;
      }
      double before = 1e9;
      for (const auto& result : perplexity(specs)) {
        const auto kl = result.at("kl_mean").get<double>();
        EXPECT_LT(kl, before) << result.at("spec");
        before = kl;
      }
      EXPECT_LT(before, 2e-3) << specs;
      EXPECT_GT(before, 0);
    }
  }
}

TEST_F(LowRank, KeysWarnAndAreRefusedInTheWaysOfValues) {
  calibrate("--rank 20");
  const std::string with = " -n 2 --calib " + path("c") + " --kv ";
  const Outcome outcome = run("generate -m embedded -q -p Hello" + with + "k=pca20+int8,v=int8");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("a transform of keys usually costs far more"), std::string::npos);
  const auto expect_refused_too = [&](const std::string& arguments, const char* why) {
    const Outcome refused = run(arguments);  // behind the warning
    EXPECT_EQ(refused.code, 2) << arguments;
    EXPECT_NE(refused.err.find(why), std::string::npos) << refused.err;
  };
  const std::string generate = "generate -m embedded -q -p Hello" + with;
  expect_refused_too("perplexity -m embedded -q --kv k=pca48", "needs a calibration");
  expect_refused_too(generate + "k=pca21", "--rank of at least 21");
  expect_refused_too(generate + "k=pca65", "rank 65");
  expect_refused_too(generate + "k=pca0", "rank");
  expect_refused_too(generate + "k=pcaw8", "not built yet for keys");
}

TEST_F(LowRank, DivergenceFallsWithBitsAndBytesDoToo) {
  calibrate();
  const auto results = perplexity(
      "--kv v=pca48 --kv v=pca48+int8 --kv v=pca48+int4 --kv v=pca48+nuq3 --kv v=pca48+nuq2");
  for (size_t i = 1; i < results.size(); ++i) {
    EXPECT_LT(results[i].at("cache_bytes"), results[i - 1].at("cache_bytes"));
    if (i == 1) continue;  // 8 bits change next to nothing
    EXPECT_GT(results[i].at("kl_mean"), results[i - 1].at("kl_mean")) << results[i].at("spec");
  }
}

TEST_F(LowRank, WaterfillingSpendsItsBitsBetterThanOneWidthOfNoFewer) {
  calibrate();
  const auto results = perplexity(
      "--kv v=pca64+wf8 --kv v=pca64+wf4 --kv v=pca64+int4 --kv v=pca64+wf2.5 "
      "--kv v=pca64+wf2 --kv v=pca64+nuq2");
  const auto kl = [&](size_t i) { return results[i].at("kl_mean").get<double>(); };
  const auto bytes = [&](size_t i) { return results[i].at("cache_bytes").get<int64_t>(); };
  for (const size_t i : {1, 3, 4}) {
    EXPECT_LT(kl(i == 3 ? 1 : i - 1), kl(i)) << i;
    EXPECT_GT(bytes(i == 3 ? 1 : i - 1), bytes(i)) << i;
  }
  EXPECT_LT(kl(1), kl(2));
  EXPECT_LE(bytes(1), bytes(2));
  EXPECT_LT(kl(4), kl(5));
  EXPECT_LE(bytes(4), bytes(5));
}

TEST_F(LowRank, TextGoesOnFromASavedCacheAsIfItHadNot) {
  calibrate();
  const std::string spec = " --kv k=nuq4-1%,v=pca32+had+int8 --calib " + path("c");
  for (const std::string& more :
       {std::string(" --kv v=pca60"), std::string(" --kv k=pca60+int8,v=pca40+wf3"), spec}) {
    const std::string with = (more == spec ? spec : more + " --calib " + path("c")) + " -q ";
    const std::string base = "generate -m embedded --temp 0 -f " + path("prompt") + with;
    write_file_atomic(path("prompt"), [&](const ByteSink& sink) {
      std::string text;
      for (int i = 0; i < 60; ++i)
        text += "The little house stood on hill " + std::to_string(i) + ". ";
      sink(std::as_bytes(std::span(text)));
    });
    const Outcome whole = run(base + "-n 24");
    ASSERT_EQ(whole.code, 0) << whole.err;
    ASSERT_EQ(run(base + "-n 1 --save-cache " + path("cache")).code, 0);
    const Outcome loaded = run(base + "-n 24 --load-cache " + path("cache"));
    ASSERT_EQ(loaded.code, 0) << loaded.err;
    EXPECT_EQ(loaded.out, whole.out);
  }
}

TEST_F(LowRank, AbsorbedDecodersChangeRoundingOnlyAndAreCounted) {
  calibrate();
  const std::string command =
      "perplexity -m embedded --precision f32 --json - -c 512 --windows 1 "
      "--calib " +
      path("c") + " --kv v=pca48+int8 --kv int8 ";
  const Outcome late = run(command), absorbed = run(command + "--absorb");
  ASSERT_EQ(late.code, 0) << late.err;
  ASSERT_EQ(absorbed.code, 0) << absorbed.err;
  EXPECT_EQ(late.err.find("decoders"), std::string::npos) << late.err;
  EXPECT_NE(absorbed.err.find("projections with value decoders take"), std::string::npos)
      << absorbed.err;
  EXPECT_NE(absorbed.err.find("int8: no values are low-rank, --absorb changes nothing"),
            std::string::npos)
      << absorbed.err;
  const auto before = nlohmann::json::parse(late.out), after = nlohmann::json::parse(absorbed.out);
  EXPECT_FALSE(before.at("config").at("absorb").get<bool>());
  EXPECT_TRUE(after.at("config").at("absorb").get<bool>());
  const auto number = [](const nlohmann::json& document, size_t row, const char* key) {
    return document.at("results").at(row).at(key).get<double>();
  };
  EXPECT_NEAR(number(after, 0, "perplexity"), number(before, 0, "perplexity"), 0.05);
  EXPECT_NEAR(number(after, 0, "kl_mean"), number(before, 0, "kl_mean"), 2e-4);  // a code may flip
  EXPECT_EQ(number(after, 0, "cache_bytes"), number(before, 0, "cache_bytes"));
  EXPECT_EQ(after.at("results").at(1), before.at("results").at(1));
}

TEST_F(LowRank, AbsorbIsForCommandsThatRunTheModelOnly) {
  calibrate();
  const std::string with = " -m embedded --absorb --kv v=pca48+int8 --calib " + path("c");
  const Outcome text = run("generate -p Hello -n 4 --temp 0" + with);
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.err.find("value decoders take"), std::string::npos) << text.err;
  const Outcome speed = run("bench -p 16 -n 2 -r 1 -o jsonl" + with);
  EXPECT_EQ(speed.code, 0) << speed.err;
  EXPECT_NE(speed.err.find("value decoders take"), std::string::npos) << speed.err;
  EXPECT_EQ(run("generate -q -p Hello -n 1 --absorb -m embedded").err, "");
  for (const char* command : {"eval", "info", "bench kernels"}) {
    const Outcome refused = run(command + std::string(" --absorb"));
    EXPECT_EQ(refused.code, 2) << command;
    EXPECT_NE(refused.err.find("--absorb"), std::string::npos) << refused.err;
  }
}

TEST_F(LowRank, TheDemoHasARowWhereThereAreBases) {
  const std::string command = "demo -m embedded -q --json - -c 300";
  const auto specs_of = [&](const std::string& more) {
    const Outcome outcome = run(command + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::vector<std::string> specs;
    const auto document = nlohmann::json::parse(outcome.out);
    for (const auto& row : document.at("results")) {
      specs.push_back(row.at("spec"));
    }
    return specs;
  };
  const auto rows = specs_of("");
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows.back(), "v=pca48+int8,sink=1");
  calibrate("--rank 20");
  EXPECT_EQ(specs_of(" --calib " + path("c")).size(), 5u);
}

TEST_F(LowRank, InfoForecastsWithoutACalibration) {
  const Outcome outcome =
      run("info -m embedded -q --json - -c 2048 --memory 1GiB --kv fp16 "
          "--kv v=pca48 --kv v=pca48+int8 --kv k=int8,v=pca48+int4");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto results = nlohmann::json::parse(outcome.out).at("results");
  ASSERT_EQ(results.size(), 4u);
  for (size_t i = 1; i < results.size(); ++i) {
    EXPECT_LT(results[i].at("bytes_per_token"), results[i - 1].at("bytes_per_token"));
    EXPECT_GT(results[i].at("longest_context"), results[i - 1].at("longest_context"));
  }
  EXPECT_NEAR(results[1].at("bits_per_value").get<double>(), 14, 0.01);
}

TEST_F(LowRank, CalibrateShowsWhatRanksKeep) {
  const std::string command = "calibrate -m embedded --samples 1 --seq-len 64 -q -o " + path("c");
  const Outcome text = run(command + " --spectra");
  ASSERT_EQ(text.code, 0) << text.err;
  for (const char* part : {"pca60", "pca56", "pca48", "pca32", "bases=outputs"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << text.out;
  }
  const auto energy =
      nlohmann::json::parse(run(command + " --json -").out).at("results").at(0).at("value_energy");
  EXPECT_EQ(energy.at("ranks"), nlohmann::json({60, 56, 48, 32}));
  ASSERT_EQ(energy.at("heads").size(), 12u);  // 6 layers of 2
  for (const auto& head : energy.at("heads")) {
    for (const char* kind : {"pca", "pcaw"}) {
      const auto shares = head.at(kind).get<std::vector<double>>();
      EXPECT_TRUE(std::is_sorted(shares.rbegin(), shares.rend()));
      EXPECT_LE(shares[0], 1);
      EXPECT_GT(shares[3], 0.5);
    }
  }
}

TEST_F(LowRank, WhatIsMissingIsSaidInOneLine) {
  expect_refused("perplexity -m embedded -q --kv v=pca48", "needs a calibration");
  expect_refused("generate -m embedded -q -p Hello --kv v=pca48+int8 --calib " + path("none"),
                 "Calibration file not found");
  expect_refused("perplexity -m embedded -q --kv v=wf4", "put pcaR+ or pcawR+ before it");
  calibrate("--rank 20");
  const std::string with = " --calib " + path("c") + " --kv ";
  expect_refused("generate -m embedded -q -p Hello" + with + "v=pca21", "--rank of at least 21");
  expect_refused("generate -m embedded -q -p Hello" + with + "v=pca65", "rank 65");
  expect_refused("generate -m embedded -q -p Hello" + with + "v=pca0", "rank");
  expect_refused("generate -m embedded -q -p Hello" + with + "k=had+nuq4",
                 "not built yet for keys");
  expect_refused("generate -m embedded -q -p Hello" + with + "v=pca20+had+wf4",
                 "not built yet for values");
}

}  // namespace
}  // namespace kvquant
