// `kvquant sweep` where things go wrong around it: it is killed, the disk is full.
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <csignal>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::Outcome;

constexpr const char* kGrid =
    R"({"prompt": [16], "batch": [1, 2], "kv": ["fp16", "nuq4"], "gen": 2})";
constexpr size_t kNumResults = 4;  // of the grid

class SweepRobustness : public test::ProgramTest {
 protected:
  using Files = std::map<std::string, std::string>;  // content by name

  std::string sweep(const std::string& folder, int seed) const {
    write_file_atomic(path("grid.json"), kGrid);
    return "sweep -m embedded -t 1 --warmup 1 --min-repetitions 1 --max-repetitions 1 --powercap "
           "/nonexistent --quiet --seed " +
           std::to_string(seed) + " --grid " + path("grid.json") + " -o " + folder;
  }

  // Every one whole.
  static Files results_in(const std::string& folder) {
    Files results;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("len", 0) != 0 || entry.path().extension() != ".json") continue;
      results[name] = read_text(entry.path().string());
      const Json document = Json::parse(results[name], nullptr, false);
      EXPECT_TRUE(document.is_object() && document.value("schema", 0) == 1) << name;
    }
    return results;
  }

  // Its lines are JSON, too; returns how many there are.
  static size_t check_index(const std::string& folder) {
    if (!fs::exists(folder + "/index.jsonl")) return 0;
    std::istringstream lines(read_text(folder + "/index.jsonl"));
    size_t count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      EXPECT_TRUE(Json::parse(line, nullptr, false).is_object()) << line;
    }
    return count;
  }

  static void expect_kept(const Files& before, const Files& after) {
    for (const auto& [name, content] : before) {
      ASSERT_TRUE(after.count(name) > 0) << name;
      EXPECT_EQ(after.at(name), content) << name;
    }
  }

  // Runs it in a process group of its own and kills after a while: the group, or the sweep alone.
  // Returns whether it was still running.
  static bool run_killed(const std::string& arguments, int milliseconds, bool whole_group) {
    const std::string command =
        std::string("exec ") + KVQUANT_PROGRAM + " " + arguments + " </dev/null >/dev/null 2>&1";
    const pid_t process = fork();
    if (process == 0) {
      setpgid(0, 0);
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    setpgid(process, process);
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    kill(whole_group ? -process : process, SIGKILL);
    int status = 0;
    waitpid(process, &status, 0);
    return WIFSIGNALED(status);
  }
};

TEST_F(SweepRobustness, KilledAtAnyMomentItGoesOnWhereItWas) {
  const std::string folder = path("results");
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run(sweep(folder, 0)).code, 0);
  const auto whole = std::chrono::duration_cast<std::chrono::milliseconds>(
                         std::chrono::steady_clock::now() - begin)
                         .count();
  std::mt19937 rng(42);
  int num_killed = 0, seed = 1;
  Files before = results_in(folder);
  for (int i = 0; i < 20; ++i) {
    const int moment = static_cast<int>(rng() % static_cast<unsigned>(std::max<int64_t>(1, whole)));
    num_killed += run_killed(sweep(folder, seed), moment, i % 2 == 0) ? 1 : 0;
    const Files after = results_in(folder);
    expect_kept(before, after);
    check_index(folder);
    before = after;
    if (before.size() == kNumResults * static_cast<size_t>(seed + 1)) ++seed;  // work for the next
  }
  EXPECT_GT(num_killed, 0);
  EXPECT_EQ(run(sweep(folder, seed)).code, 0);
  const Files all = results_in(folder);
  expect_kept(before, all);
  EXPECT_EQ(all.size(), kNumResults * static_cast<size_t>(seed + 1));
  EXPECT_EQ(check_index(folder), all.size());
}

// A disk of a megabyte.
class SweepOnASmallDisk : public SweepRobustness {
 protected:
  void SetUp() override {
    SweepRobustness::SetUp();
    fs::create_directories(path("disk"));
    is_mounted_ = mount("tmpfs", path("disk").c_str(), "tmpfs", 0, "size=1m") == 0;
    if (!is_mounted_) GTEST_SKIP() << "can't mount a tmpfs here: needs root";
  }
  void TearDown() override {
    if (is_mounted_) umount(path("disk").c_str());
    SweepRobustness::TearDown();
  }
  // A small file takes a page.
  void fill_disk_but(uint64_t pages) const {
    const uint64_t left = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const auto size = static_cast<size_t>(fs::space(path("disk")).available - left);
    std::ofstream(path("disk/filler")) << std::string(size, 'x');
  }

 private:
  bool is_mounted_ = false;
};

TEST_F(SweepOnASmallDisk, AFullDiskIsALineAndTheNextStartGoesOn) {
  const std::string folder = path("disk/results");
  fs::create_directories(folder);
  fill_disk_but(4);  // three results, and the index of two of them
  const Outcome full = run(sweep(folder, 1));
  EXPECT_EQ(full.code, 3) << full.err;
  EXPECT_EQ(std::count(full.err.begin(), full.err.end(), '\n'), 1) << full.err;
  EXPECT_NE(full.err.find("No space left on device"), std::string::npos) << full.err;
  const Files before = results_in(folder);
  EXPECT_EQ(before.size(), 3u);
  EXPECT_EQ(run(sweep(folder, 1)).code, 3);  // still full
  expect_kept(before, results_in(folder));
  for (const auto& entry : fs::directory_iterator(folder)) {
    EXPECT_EQ(entry.path().filename().string().find(".tmp"), std::string::npos) << entry.path();
  }
  fs::remove(path("disk/filler"));
  EXPECT_EQ(run(sweep(folder, 1)).code, 0);
  const Files all = results_in(folder);
  expect_kept(before, all);
  EXPECT_EQ(all.size(), kNumResults);
  EXPECT_EQ(check_index(folder), kNumResults);
}

TEST_F(SweepOnASmallDisk, WithoutAByteLeftNothingIsMeasured) {
  fill_disk_but(0);
  const Outcome full = run(sweep(path("disk/results"), 1));
  EXPECT_EQ(full.code, 3) << full.err;
  EXPECT_EQ(std::count(full.err.begin(), full.err.end(), '\n'), 1) << full.err;
}

}  // namespace
}  // namespace kvquant
