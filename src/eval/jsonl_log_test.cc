#include "eval/jsonl_log.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "base/file.h"
#include "base/test_path.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using Lines = std::vector<std::string>;

class JsonlLogTest : public testing::Test {
 protected:
  JsonlLogTest() { std::filesystem::remove(path_); }
  ~JsonlLogTest() override { std::filesystem::remove(path_); }

  JsonlLog open() {
    lines_.clear();
    places_.clear();
    return {path_, [&](const std::string& line, const std::string& place) {
              lines_.push_back(line);
              places_.push_back(place);
            }};
  }

  const std::string path_ = test::test_path("log.jsonl");
  Lines lines_, places_;
};

TEST_F(JsonlLogTest, HasOnDiskWhatWasAddedAndReadsIt) {
  JsonlLog log = open();
  EXPECT_EQ(log.num_read(), 0);
  log.add({{"b", 1}, {"a", "x\ny"}});
  EXPECT_EQ(read_text(path_), "{\"b\":1,\"a\":\"x\\ny\"}\n");
  log.add({{"a", "\xff"}});
  EXPECT_EQ(open().num_read(), 2);
  EXPECT_EQ(lines_, (Lines{"{\"b\":1,\"a\":\"x\\ny\"}", "{\"a\":\"\xEF\xBF\xBD\"}"}));
  EXPECT_EQ(places_, (Lines{path_ + ":1", path_ + ":2"}));
}

TEST_F(JsonlLogTest, TakesAnUnfinishedLineOff) {
  open().add({{"a", 1}});
  write_file_atomic(path_, read_text(path_) + "{\"a\":");
  EXPECT_EQ(open().num_read(), 1);
  EXPECT_EQ(read_text(path_), "{\"a\":1}\n");
  write_file_atomic(path_, "{\"a\":");
  EXPECT_EQ(open().num_read(), 0);
  EXPECT_EQ(read_text(path_), "");
}

TEST_F(JsonlLogTest, LeavesTheFileAsItIsWhenALineIsRefused) {
  write_file_atomic(path_, "x\ny");
  const auto refuse = [](const std::string&, const std::string&) { throw FormatError("no"); };
  EXPECT_THROW(JsonlLog(path_, refuse), FormatError);
  EXPECT_EQ(read_text(path_), "x\ny");
}

TEST_F(JsonlLogTest, WithoutAFileNothingIsWrittenAndAFolderIsNone) {
  JsonlLog().add({{"a", 1}});
  EXPECT_THROW(JsonlLog(testing::TempDir() + "no_such_folder/log", {}), IoError);
}

}  // namespace
}  // namespace kvquant
