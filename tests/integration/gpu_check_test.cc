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
                 "case \"$*\" in *cuda*) export KVQUANT_BACKEND=cuda-emulated;; esac; exec " +
                     std::string(KVQUANT_PROGRAM) + " \"$@\"");
  }

  void write_script(const std::string& name, const std::string& text) {
    const std::string file = path("bundle/" + name);
    write_file_atomic(file, "#!/bin/sh\n" + text + "\n");
    fs::permissions(file, fs::perms::owner_all);
  }

  int check() {
    const std::string command = "python3 " KVQUANT_SOURCE_DIR "/tools/gpu_check --small --bundle " +
                                path("bundle") + " " + path("results") + " >" + path("told") +
                                " 2>&1";
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  json result(const std::string& name) { return json::parse(read_text(path("results/" + name))); }
};

TEST_F(GpuCheck, SeesThatTheModelSaysTheSameAndTimesIt) {
  EXPECT_EQ(check(), 0) << read_text(path("told"));
  EXPECT_EQ(result("model.json")["wrong"], json::array());
  EXPECT_EQ(result("model.json")["perplexity"].size(), 3u);
  EXPECT_EQ(result("bench.json")["config"]["device_name"], "emulated by the CPU");
  for (const auto& [step, code] : result("summary.json")["exit_codes"].items()) {
    EXPECT_EQ(code, 0) << step;
  }
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
