// Commands with --device cuda, on the CPU that plays the GPU: they say what the CPU says, and
// refuse in one line what devices don't have.
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "program.h"

namespace kvquant {
namespace {

using nlohmann::json;
using test::Outcome;

constexpr const char* kPlayed = "the CPU plays device cuda:0";

class OnADevice : public test::ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    ASSERT_EQ(setenv("KVQUANT_BACKEND", "cuda-emulated", 1), 0);
  }
  void TearDown() override {
    unsetenv("KVQUANT_BACKEND");
    ProgramTest::TearDown();
  }

  // Results with and without the device; `arguments` have no --device.
  struct Both {
    json device, cpu;
  };
  Both run_both(const std::string& arguments, const char* cpu_backend = "") {
    const Outcome device = run(arguments + " --device cuda -q --json -");
    EXPECT_EQ(device.code, 0) << device.err;
    EXPECT_NE(device.err.find(kPlayed), std::string::npos) << "nobody is told: " << device.err;
    setenv("KVQUANT_BACKEND", cpu_backend, 1);
    const Outcome cpu = run(arguments + " -q --json -");
    EXPECT_EQ(cpu.code, 0) << cpu.err;
    setenv("KVQUANT_BACKEND", "cuda-emulated", 1);
    return {json::parse(device.out), json::parse(cpu.out)};
  }

  std::string long_prompt() {
    std::string text;
    for (int i = 0; i < 30; ++i) text += "The old man went down to the harbour, and saw the sea. ";
    const std::string file = path("prompt.txt");
    write_file_atomic(file, text);
    return file;
  }
};

TEST_F(OnADevice, GenerateWritesWhatTheCpuWrites) {
  const std::string prompt = long_prompt();
  for (const char* codec : {"--kv fp16", "--kv nuq4-1%", "--kv int8,sink=2,recent=30",
                            "--kv k=nuq4,v=fp16", "--kv k=bf16,v=fp16", "--preset r48-vonly"}) {
    SCOPED_TRACE(codec);
    const auto [device, cpu] =
        run_both("generate -m embedded --temp 0 -n 12 --precision f32 -f " + prompt + " " + codec);
    const json &mine = device["results"][0], &other = cpu["results"][0];
    EXPECT_EQ(mine["tokens"], other["tokens"]);
    EXPECT_EQ(mine["text"], other["text"]);
    EXPECT_EQ(mine["compressed_tokens"], other["compressed_tokens"]);
    EXPECT_EQ(device["config"]["device"], "cuda");
    EXPECT_EQ(device["config"]["device_name"], "emulated by the CPU");
    EXPECT_EQ(cpu["config"]["device_name"], nullptr);
  }
}

TEST_F(OnADevice, DrawsTheTokensThatTheCpuDraws) {
  for (const char* options :
       {"--temp 0.8 --top-k 20", "--temp 1.2 --top-k 40 --top-p 0.9 --repeat-penalty 1.3",
        "--temp 0 --repeat-penalty 1.5", "--temp 1 --top-k 0", "--temp 1 --top-k 100 --min-p 0"}) {
    SCOPED_TRACE(options);
    const auto [device, cpu] =
        run_both("generate -m embedded -n 20 --precision f32 --seed 7 -p \"The sea was\" " +
                 std::string(options));
    EXPECT_EQ(device["results"][0]["tokens"], cpu["results"][0]["tokens"]);
  }
}

TEST_F(OnADevice, LayersAreSpreadOverSeveral) {
  const std::string generate = "generate -m embedded -q --temp 0 -n 12 --precision f32 -f " +
                               long_prompt() + " --kv nuq3-1% --json - --device cuda:";
  const auto spread = run(generate + "3,0,1"), alone = run(generate + "0");
  ASSERT_EQ(spread.code, 0) << spread.err;
  const json mine = json::parse(spread.out), other = json::parse(alone.out);
  EXPECT_EQ(mine["results"][0]["tokens"], other["results"][0]["tokens"]);
  EXPECT_EQ(mine["config"]["device"], "cuda:3,0,1");
  EXPECT_EQ(mine["config"]["device_name"],
            "emulated by the CPU, emulated by the CPU, emulated by the CPU");
}

TEST_F(OnADevice, PerplexityIsThatOfTheCpu) {
  for (const char* mode : {"", " --as-served"}) {
    const auto [device, cpu] = run_both(
        std::string("perplexity -m embedded -c 300 --windows 2 --ubatch 128 --precision f32 "
                    "--kv fp16 --kv nuq3-1%,block=64") +
            mode,
        "reference");  // others round a score differently, and with it a code of a later layer
    ASSERT_EQ(device["results"].size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      const json &mine = device["results"][i], &other = cpu["results"][i];
      EXPECT_NEAR(mine["perplexity"].get<double>() / other["perplexity"].get<double>(), 1, 1e-4);
      EXPECT_NEAR(mine["kl_mean"].get<double>(), other["kl_mean"].get<double>(), 1e-4);
      EXPECT_NEAR(mine["true_bits"].get<double>() / other["true_bits"].get<double>(), 1, 0.1);
      EXPECT_EQ(mine["compressed_tokens"], other["compressed_tokens"]);
    }
    EXPECT_GT(device["results"][1]["compressed_tokens"], 0);
  }
}

TEST_F(OnADevice, BenchNamesTheDeviceAndLeavesTheDepthAsItWas) {
  const auto [device, cpu] = run_both(
      "bench -m embedded -p 70 -n 3 -d 0,200 -b 2 -r 2 --ubatch 128 --kv fp16 --kv "
      "nuq3-1%,block=64");
  EXPECT_EQ(device["config"]["device_name"], "emulated by the CPU");
  EXPECT_EQ(device["config"]["precision"], "bf16") << "GPUs have it";
  ASSERT_EQ(device["results"].size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    const json &mine = device["results"][i], &other = cpu["results"][i];
    EXPECT_EQ(mine["test"], other["test"]);
    EXPECT_GT(mine["tokens_per_s_mean"], 0);
    const auto bytes = mine["cache_bytes"].get<double>();
    EXPECT_NEAR(bytes / other["cache_bytes"].get<double>(), 1, 0.25);
    EXPECT_GE(mine["peak_cache_bytes"], bytes);
  }
}

TEST_F(OnADevice, BenchSaysWhatTheGpuTakesWhereItCounts) {
  const std::string bench = "bench -m embedded -q -p 16 -n 0 -r 2 --json - --device cuda:";
  const auto result = [&](const std::string& rest) {
    const Outcome outcome = run(bench + rest);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return json::parse(outcome.out)["results"][0];
  };
  const json counted = result("0 --nvml " KVQUANT_FAKE_NVML);
  EXPECT_EQ(counted["energy"], "measured");
  EXPECT_EQ(counted["energy_note"], "measured by nvml 0 (Fake GPU)");
  EXPECT_GE(counted["joules"].get<double>(), 1.5);
  EXPECT_DOUBLE_EQ(counted["joules_per_token"].get<double>(), counted["joules"].get<double>() / 16);
  const json without = result("1 --nvml " KVQUANT_FAKE_NVML);
  EXPECT_EQ(without["energy"], "not measured");
  EXPECT_EQ(without["energy_note"], "nvml: total energy: Not Supported");
  EXPECT_EQ(without["joules_per_token"], nullptr);
  EXPECT_FALSE(result("0").contains("energy")) << "a GPU at rest is no measure of the CPU";
}

TEST_F(OnADevice, ChatForgetsWhenTheContextIsFullAndRefusesFiles) {
  write_file_atomic(path("lines"), "Hello there, how is the sea today?\n/save " + path("chat") +
                                       "\nGo on with the old man.\nAnd then?\n");
  const std::string chat =
      "chat -m embedded --chat-template llama2 -n 12 --temp 0 --precision f32 -c 100 --kv nuq4";
  const Outcome device = run(chat + " --device cuda", path("lines"));
  EXPECT_EQ(device.code, 0) << device.err;
  EXPECT_NE(device.err.find("caches on GPUs have no files"), std::string::npos) << device.err;
  EXPECT_NE(device.err.find("are forgotten"), std::string::npos) << device.err;
  unsetenv("KVQUANT_BACKEND");
  EXPECT_EQ(device.out, run(chat, path("lines")).out);
}

TEST_F(OnADevice, EvalGivesTheScoresOfTheCpu) {
  write_file_atomic(path("piqa.jsonl"),
                    R"({"goal": "To sit", "sol1": "use a chair", "sol2": "fly", "label": 0}
{"goal": "To eat", "sol1": "use a spoon", "sol2": "use a car", "label": 0}
{"goal": "To run", "sol1": "sleep", "sol2": "go to the park", "label": 1}
)");
  // ubatch below the contexts: their beginnings are kept as forks.
  const auto [device, cpu] = run_both(
      "eval -m embedded --tasks passkey,piqa --context-lengths 200 --limit 2 --ubatch 64 "
      "--batch-size 2 --precision f32 --kv nuq4-1%,block=64 --data " +
          path(""),
      "reference");
  ASSERT_EQ(device["results"].size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const json &mine = device["results"][i], &other = cpu["results"][i];
    SCOPED_TRACE(mine["task"].get<std::string>() + ", " + mine["spec"].get<std::string>());
    EXPECT_EQ(mine["task"], other["task"]);
    EXPECT_EQ(mine["compressed_tokens"], other["compressed_tokens"]);
    EXPECT_EQ(mine["cells"], other["cells"]);
    if (!mine.contains("nll,none")) continue;
    EXPECT_NEAR(mine["nll,none"].get<double>(), other["nll,none"].get<double>(), 1e-2);
    EXPECT_EQ(mine["acc,none"], other["acc,none"]);
  }
  EXPECT_EQ(device["config"]["device_name"], "emulated by the CPU");
}

TEST_F(OnADevice, SweepMeasuresOnDevices) {
  const Outcome outcome =
      run("sweep -m embedded -q --device cuda:0,1 --warmup 1 --min-repetitions 1 "
          "--max-repetitions 1 --powercap /nonexistent --config len16_batch2_gen2_nuq4 -o " +
          path("results") + " --json " + path("all.json"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = json::parse(read_text(path("all.json")));
  const json& result = document["results"][0];
  EXPECT_EQ(result["status"], "ok");
  EXPECT_EQ(result["batch"], 2);
  EXPECT_GT(result["decode_tokens_per_s"], 0);
  EXPECT_FALSE(result.contains("decode_joules")) << "of GPUs it isn't counted";
}

TEST_F(OnADevice, WhatDevicesDoNotHaveIsRefusedInOneLine) {
  const auto expect_told = [&](const std::string& arguments, int code, const std::string& part) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, code) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
    const size_t last = outcome.err.rfind('\n', outcome.err.size() - 2);
    EXPECT_TRUE(outcome.err.substr(last + 1).starts_with("kvquant: ")) << outcome.err;
  };
  const std::string generate = "generate -m embedded -q -p Hello -n 2 --device cuda ";
  expect_told("generate -m embedded -q -p Hello --device cuda:4", 3, "there are cuda:0 to cuda:3");
  expect_told("generate -m embedded -q -p Hello --device cuda:1,4", 3, "cuda:4 is out of range");
  expect_told("generate -m embedded -q -p Hello --device cuda:1,1", 2, "cuda:1 is there twice");
  expect_told("generate -m embedded -q -p Hello --device cpu,cuda:1", 2, "is unknown");
  expect_told(generate + "--save-cache " + path("cache"), 2, "--save-cache");
  expect_told(generate + "--weights int8", 2, "--weights");
  expect_told(generate + "--absorb", 2, "--absorb");
  expect_told(generate + "--policy balanced", 2, "--policy");
  expect_told("info -m embedded -q --device cuda", 2, "runs on the CPU only");
}

}  // namespace
}  // namespace kvquant
