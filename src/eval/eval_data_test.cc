#include "eval/eval_data.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/test_path.h"

namespace kvquant {
namespace {

std::string error_of(const std::vector<std::string>& names, const std::vector<std::string>& given) {
  try {
    find_task_files(names, given);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(TaskFiles, AreFoundInFoldersAndByName) {
  const std::string folder = test::test_path("data");
  std::filesystem::create_directories(folder + "/vt");
  for (const char* name : {"/vt/validation.jsonl", "/quality.jsonl", "/qasper.jsonl", "/x.json"}) {
    write_file_atomic(folder + name, "{}");
  }
  const auto found = find_task_files({"passkey", "ruler", "leval", "longbench"},
                                     {"qa_2=" + folder + "/x.json", folder});
  EXPECT_EQ(found.files,
            (std::map<std::string, std::string>{{"vt", folder + "/vt/validation.jsonl"},
                                                {"leval_quality", folder + "/quality.jsonl"},
                                                {"qasper", folder + "/qasper.jsonl"},
                                                {"qa_2", folder + "/x.json"}}));
  EXPECT_EQ(found.left_out.size(), 1u + 3u + 5u);
  EXPECT_EQ(found.tasks.size(), 1u + 12u + 1u + 1u);
  EXPECT_EQ(find_task_files({"passkey", "lambada"}, {folder + "/x.json"}).files.at("lambada"),
            folder + "/x.json");
}

TEST(TaskFiles, AreMissedByName) {
  EXPECT_EQ(error_of({"lambada"}, {}),
            "lambada: there is no data for it: give --data lambada=FILE");
  EXPECT_EQ(error_of({"longbench"}, {}),
            "narrativeqa: there is no data for it: give --data narrativeqa=FILE");
  EXPECT_EQ(error_of({"ruler", "passkey"}, {}), "no error");
  EXPECT_EQ(error_of({"passkey"}, {"x.jsonl"}),
            "--data \"x.jsonl\" is a file, but 0 tasks take data: say TASK=FILE, or name a folder");
  EXPECT_EQ(error_of({"passkey"}, {"vt=x.jsonl"}),
            "--data \"vt=x.jsonl\": \"vt\" is not one of the tasks to be run, or takes no data");
  EXPECT_EQ(error_of({"vt"}, {"vt=x", "vt=y"}), "--data names a file for vt twice");
}

}  // namespace
}  // namespace kvquant
