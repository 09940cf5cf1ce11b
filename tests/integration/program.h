// Runs the program as a user would, in a folder of the test's own.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/file.h"

namespace kvquant::test {

struct Outcome {
  int code;
  std::string out, err;
};

class ProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string("kvquant_") + info->test_suite_name() + "_" + info->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  Outcome run(const std::string& arguments, const std::string& input = "/dev/null") const {
    const std::string command = std::string(KVQUANT_PROGRAM) + " " + arguments + " <" + input +
                                " >" + path("out") + " 2>" + path("err");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(path("out")),
            read_text(path("err"))};
  }

  // Sends SIGINT as soon as the program has its handler for it, however fast the machine is.
  Outcome run_interrupted(const std::string& arguments) const {
    const std::string command = std::string("exec ") + KVQUANT_PROGRAM + " " + arguments +
                                " </dev/null >" + path("out") + " 2>" + path("err");
    const pid_t process = fork();
    if (process == 0) {
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    int status = 0;
    while (waitpid(process, &status, WNOHANG) == 0 && !catches_interrupts(process)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    kill(process, SIGINT);
    waitpid(process, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(path("out")),
            read_text(path("err"))};
  }

  void expect_interrupted(const std::string& arguments) const {
    const Outcome outcome = run_interrupted(arguments);
    EXPECT_EQ(outcome.code, 130) << arguments;
    EXPECT_EQ(outcome.err, "kvquant: interrupted\n") << arguments;
  }

  void expect_refused(const std::string& arguments, const std::string& part) const {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.out, "") << arguments;
  }

  std::filesystem::path folder_;

 private:
  // Whether it is the program yet (before it, the shell) and has a handler; proc_pid_status(5).
  static bool catches_interrupts(pid_t process) {
    std::ifstream file("/proc/" + std::to_string(process) + "/status");
    bool is_program = false;
    for (std::string line; std::getline(file, line);) {
      if (line == "Name:\tkvquant") is_program = true;
      if (line.rfind("SigCgt:", 0) != 0) continue;  // a bit for each signal from 1 on
      return is_program && (std::stoull(line.substr(7), nullptr, 16) >> (SIGINT - 1) & 1) != 0;
    }
    return false;
  }
};

}  // namespace kvquant::test
