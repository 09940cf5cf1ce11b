// The job scripts in slurm/, with shell scripts in place of sbatch and of the program.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

class SlurmTemplates : public test::ProgramTest {
 protected:
  void SetUp() override {
    ProgramTest::SetUp();
    fs::create_directories(path("repository"));
    fs::create_directories(path("bin"));
    fs::copy(KVQUANT_SOURCE_DIR "/slurm", path("repository/slurm"));
    fake("sbatch", "echo \"$@\" >>" + path("submitted"));
    fake("program", "for x; do echo \"$x\"; done >>" + path("arguments"));
  }
  void fake(const std::string& name, const std::string& body) const {
    write_file_atomic(path("bin/" + name), "#!/bin/sh\n" + body + "\n");
    fs::permissions(path("bin/" + name), fs::perms::owner_all);
  }
  // In the root of the repository; returns the exit code.
  int shell(const std::string& command) const {
    const std::string all = "cd " + path("repository") + " && PATH=" + path("bin") +
                            ":$PATH KVQUANT_PROGRAM=" + path("bin/program") + " " + command + " >" +
                            path("out") + " 2>&1";
    const int status = std::system(all.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

constexpr const char* kNames[] = {"baseline", "calibration", "perplexity", "throughput",
                                  "energy",   "longbench",   "ruler"};

TEST_F(SlurmTemplates, SubmitGivesEveryScriptWhatCommonSays) {
  const std::string variables =
      "KVQUANT_ACCOUNT=lab KVQUANT_PARTITION=long KVQUANT_GPUS=a100:1 KVQUANT_MEMORY=3G "
      "KVQUANT_TIME=5 KVQUANT_CPUS=4 ";
  for (const char* name : kNames) {
    SCOPED_TRACE(name);
    fs::remove(path("submitted"));
    EXPECT_EQ(shell("env " + variables + "slurm/submit " + name), 0) << read_text(path("out"));
    EXPECT_EQ(read_text(path("submitted")),
              "--export=ALL --mem=3G --time=5 --cpus-per-task=4 --account=lab --partition=long "
              "--gres=gpu:a100:1 slurm/" +
                  std::string(name) + ".sbatch\n");
    const std::string text = read_text(path("repository/slurm/" + std::string(name) + ".sbatch"));
    EXPECT_NE(text.find("#SBATCH --output=logs/"), std::string::npos);
    EXPECT_NE(text.find("#SBATCH --job-name=kvquant-" + std::string(name)), std::string::npos);
  }
  EXPECT_TRUE(fs::is_directory(path("repository/logs")));
}

TEST_F(SlurmTemplates, AJobFailsWithItsCommandAndPassesOnPathsWithSpaces) {
  const std::string variables = "env KVQUANT_DATA='a text' KVQUANT_OUTPUT='my results' bash slurm/";
  for (const char* name : kNames) {
    SCOPED_TRACE(name);
    fake("program", "for x; do echo \"$x\"; done >>" + path("arguments"));
    fs::remove(path("arguments"));
    EXPECT_EQ(shell(variables + name + ".sbatch"), 0) << read_text(path("out"));
    const std::string arguments = read_text(path("arguments"));
    EXPECT_NE(arguments.find("--model\nembedded\n--device\ncpu\n"), std::string::npos);
    EXPECT_NE(arguments.find("\nmy results/"), std::string::npos) << arguments;
    const std::string given = name;
    if (given != "baseline" && given != "throughput" && given != "energy") {
      EXPECT_NE(arguments.find("\na text\n"), std::string::npos) << arguments;
    }
    fake("program", "exit 3");
    EXPECT_EQ(shell(variables + name + ".sbatch"), 3);
  }
}

TEST_F(SlurmTemplates, WhatIsMissingIsALine) {
  EXPECT_EQ(shell("slurm/submit"), 2);
  EXPECT_NE(read_text(path("out")).find("baseline.sbatch"), std::string::npos);
  EXPECT_EQ(shell("slurm/submit ruler nonsense"), 2);
  EXPECT_EQ(read_text(path("out")), "slurm/submit: there is no slurm/nonsense.sbatch\n");
  EXPECT_FALSE(fs::exists(path("submitted")));
  EXPECT_NE(shell("bash slurm/longbench.sbatch"), 0);
  EXPECT_NE(read_text(path("out")).find("KVQUANT_DATA has to be"), std::string::npos);
}

}  // namespace
}  // namespace kvquant
