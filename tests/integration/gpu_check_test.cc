// tools/gpu_check without a GPU: programs that play theirs, and the real program on the CPU that
// plays the device.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class GpuCheck : public test::ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    fs::create_directories(path("bundle"));
    write_script("ld-linux-played.so", "shift 2; exec \"$@\"");
    for (const char* name :
         {"base_tests", "formats_tests", "ops_tests", "cache_tests", "cuda_timing"}) {
      write_script(name, "exit 0");
    }
    write_script("kvquant",
                 "case \"$*\" in *cuda*) export KVQUANT_BACKEND=cuda-emulated;; esac; "
                 "[ \"$1\" = bench ] && set -- \"$@\" --nvml " KVQUANT_FAKE_NVML "; exec " +
                     std::string(KVQUANT_PROGRAM) + " \"$@\"");
  }

  void write_script(const std::string& name, const std::string& text) {
    const std::string file = path("bundle/" + name);
    write_file_atomic(file, "#!/bin/sh\n" + text + "\n");
    fs::permissions(file, fs::perms::owner_all);
  }

  int check(const std::string& size = "--small") {
    const std::string command =
        "PYTHONDONTWRITEBYTECODE=1 python3 " KVQUANT_SOURCE_DIR "/tools/gpu_check " + size +
        " --bundle " + path("bundle") + " " + path("results") + " >" + path("told") + " 2>&1";
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  json target(const std::string& name) {
    const json summary = result("summary.json");
    for (const json& row : summary["targets"]) {
      if (row["target"] == name) return row;
    }
    ADD_FAILURE() << "no target " << name;
    return {};
  }

  json result(const std::string& name) { return json::parse(read_text(path("results/" + name))); }
};

TEST_F(GpuCheck, SeesThatTheModelSaysTheSameAndTimesIt) {
  EXPECT_EQ(check(), 0) << read_text(path("told"));
  EXPECT_EQ(result("model.json")["wrong"], json::array());
  EXPECT_EQ(result("model.json")["perplexity"].size(), 3u);
  EXPECT_EQ(result("bench.json")["config"]["device_name"], "emulated by the CPU");
  const json summary = result("summary.json");
  for (const auto& [step, code] : summary["exit_codes"].items()) {
    EXPECT_EQ(code, 0) << step;
  }
}

TEST_F(GpuCheck, FillsABudgetOfCachesAndCountsEnergy) {
  EXPECT_EQ(check(), 0) << read_text(path("told"));
  const json budget = result("budget.json")["results"];
  ASSERT_EQ(budget.size(), 3u);
  const json &fp16 = budget[0], &coded = budget[2];
  EXPECT_EQ(coded["spec"], "nuq3-1%");
  for (const json& row : {fp16, coded}) {
    const auto batch = row["batch"].get<int64_t>(),
               bytes = row["bytes_per_sequence"].get<int64_t>();
    EXPECT_LE(batch * bytes, 400000);
    EXPECT_GT((batch + 1) * bytes, 400000);
    EXPECT_GT(row["joules"], row["decode_joules"]);
  }
  const std::string in_budget = " in the cache budget, nuq3-1% against fp16";
  const json requests = target("requests/s" + in_budget);
  EXPECT_DOUBLE_EQ(requests["measured"].get<double>(),
                   coded["requests_per_s"].get<double>() / fp16["requests_per_s"].get<double>());
  EXPECT_EQ(requests["met"], nullptr) << "small shapes are not the target's";
  EXPECT_GT(target("energy of a generated token, decoding alone," + in_budget)["measured"], 0);
  EXPECT_EQ(target("encode, of prefill")["measured"], nullptr);
}

TEST_F(GpuCheck, SaysOfEachTargetWhetherItIsMetOrWhyItIsNotMeasured) {
  write_script("kvquant", "exit 3");
  write_script("cuda_timing", R"(echo '{"config": {"copy_gb_per_s": 4000}, "results": [
{"what": "decode", "num_kv_heads": 32, "spec": "fp16", "ms_median": 9, "is_right": true},
{"what": "decode", "num_kv_heads": 32, "spec": "nuq4", "ms_median": 3, "cache_gb_per_s": 2000},
{"what": "decode", "num_kv_heads": 32, "spec": "nuq4-1%", "ms_median": 3, "is_right": true},
{"what": "decode", "num_kv_heads": 32, "spec": "nuq3-1%", "ms_median": 3, "is_right": true},
{"what": "decode", "num_kv_heads": 32, "spec": "nuq2-1%", "ms_median": 1, "is_right": false}]}')");
  fs::create_directories(path("results"));
  write_file_atomic(path("results/budget.json"), R"({"results": [{"spec": "fp16"}]})");
  EXPECT_EQ(check(""), 1);
  const std::string decode = "decode attention, 32/32 heads, ";
  EXPECT_EQ(target(decode + "nuq4-1% against fp16"),
            json({{"target", decode + "nuq4-1% against fp16"},
                  {"least", 3.0},
                  {"measured", 3.0},
                  {"met", true}}));
  EXPECT_EQ(target(decode + "nuq3-1% against fp16")["met"], false);
  const json wrong = target(decode + "nuq2-1% against fp16");
  EXPECT_EQ(wrong["met"], nullptr);
  EXPECT_EQ(wrong["measured"], nullptr);
  EXPECT_NE(wrong["why"].get<std::string>().find("is wrong"), std::string::npos);
  EXPECT_EQ(target("bandwidth on codes, nuq4, of a copy's")["met"], false);
  EXPECT_EQ(target("largest batches, of the byte ratio")["why"], "budget.json has no results")
      << "results of an earlier run don't count";
}

TEST_F(GpuCheck, FailsWhereTheProgramOrATestDoes) {
  write_script("ops_tests", "exit 1");
  write_script("kvquant", "echo 'kvquant: device cuda:0: no NVIDIA driver was found' >&2; exit 3");
  EXPECT_EQ(check(), 1);
  const json codes = result("summary.json")["exit_codes"];
  EXPECT_EQ(codes["ops_tests"], 1);
  EXPECT_EQ(codes["base_tests"], 0);
  EXPECT_EQ(codes["model"], 1);
  EXPECT_NE(result("model.json")["wrong"][0].get<std::string>().find("no NVIDIA driver"),
            std::string::npos);
  EXPECT_EQ(codes["bench"], 3);
}

}  // namespace
}  // namespace kvquant
