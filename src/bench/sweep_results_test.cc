#include "bench/sweep_results.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/test_path.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

class SweepResultsFolder : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  static Json document(const std::string& name, const std::string& status) {
    Json out = make_document("sweep", {{"name", "m"}, {"fingerprint", "f"}}, Json::object());
    out["results"].push_back({{"name", name}, {"status", status}});
    return out;
  }
  std::string index() const { return read_text(folder_ + "/index.jsonl"); }

  std::string folder_ = test::test_path("results");
};

TEST_F(SweepResultsFolder, AResultIsNeverWrittenAgain) {
  const SweepResults results(folder_);
  EXPECT_EQ(results.state("a"), ResultState::kMissing);
  results.add("a", document("first", "ok"));
  EXPECT_EQ(results.state("a"), ResultState::kFinished);
  results.add("a", document("second", "ok"));
  EXPECT_EQ(results.read("a").at("results")[0].at("name"), "first");
}

TEST_F(SweepResultsFolder, OneOfSeveralWritersWinsAndNoneLeavesAPart) {
  const SweepResults results(folder_);
  std::vector<std::thread> writers;
  for (int i = 0; i < 2; ++i) {
    writers.emplace_back([&, i] {
      for (int k = 0; k < 20; ++k) {
        // Names of parts are of a process: threads stand in for processes by names of their own.
        results.add(fmt::format("{}-{}", i, k), document("x", "ok"));
      }
    });
  }
  for (auto& writer : writers) writer.join();
  results.write_index();
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 41);
}

TEST_F(SweepResultsFolder, FailuresAreReplacedAndGoWithTheFirstResult) {
  const SweepResults results(folder_);
  results.add_failure("a", document("one", "failed"));
  results.add_failure("a", document("two", "failed"));
  EXPECT_EQ(results.state("a"), ResultState::kMissing);
  results.write_index();
  EXPECT_NE(index().find("\"name\":\"two\",\"status\":\"failed\""), std::string::npos) << index();
  results.add("a", document("three", "ok"));
  EXPECT_FALSE(fs::exists(folder_ + "/a.failed.json"));
}

TEST_F(SweepResultsFolder, TheIndexHasALinePerResultAndPassesOverOthers) {
  const SweepResults results(folder_);
  results.add("b", document("b", "ok"));
  results.add("a", document("a", "out_of_memory"));
  write_file_atomic(folder_ + "/other.json", "{\"command\": \"perplexity\"}");
  write_file_atomic(folder_ + "/broken.json", "{");
  results.write_index();
  const std::string lines = index();
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 2);
  EXPECT_EQ(lines.rfind("{\"file\":\"a.json\"", 0), 0u) << lines;
}

TEST_F(SweepResultsFolder, WhatIsNoResultOfThisSchemaIsRefusedAndStays) {
  const SweepResults results(folder_);
  const std::string other = "{\"schema\": 2, \"command\": \"sweep\", \"results\": [{}]}";
  write_file_atomic(results.path("a"), other);
  EXPECT_THROW(results.state("a"), FormatError);
  EXPECT_EQ(read_text(results.path("a")), other);
  for (const char* text : {"", "{", "[]", "{}", "{\"schema\": 1}",
                           "{\"schema\": 1, \"command\":"
                           "\"sweep\", \"results\": []}"}) {
    write_file_atomic(results.path("a"), std::string(text));
    EXPECT_THROW(results.state("a"), FormatError) << text;
  }
}

TEST_F(SweepResultsFolder, FoldersThatCannotBeWrittenAreRefused) {
  EXPECT_THROW(SweepResults("/proc/nonexistent"), IoError);
  write_file_atomic(folder_, std::string("a file"));
  EXPECT_THROW(SweepResults results(folder_), IoError);
}

TEST(SweepResultStem, IsAFileNameThatTellsConfigurationsApart) {
  const Json a = {{"threads", 1}}, b = {{"threads", 2}};
  EXPECT_EQ(result_stem("len8_batch1_nuq3-1%", a).rfind("len8_batch1_nuq3-1%-", 0), 0u);
  EXPECT_EQ(result_stem("n", a), result_stem("n", a));
  EXPECT_NE(result_stem("n", a), result_stem("n", b));
  EXPECT_EQ(result_stem("a/b c", a).rfind("a_b_c-", 0), 0u);
  EXPECT_NE(result_stem("a/b", a), result_stem("a_b", a));
  const std::string stem = result_stem(std::string(1000, 'x'), a);
  EXPECT_LT(stem.size(), 200u);
  EXPECT_NE(stem, result_stem(std::string(1001, 'x'), a));
}

}  // namespace
}  // namespace kvquant
