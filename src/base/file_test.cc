#include "base/file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "kvquant/error.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

fs::path fresh_folder(const char* name) {
  const fs::path folder = fs::path(testing::TempDir()) / name;
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

TEST(File, WhatWasWrittenIsRead) {
  const auto path = (fresh_folder("kvquant_file") / "a.txt").string();
  write_file_atomic(path, "first");
  write_file_atomic(path, "second");
  EXPECT_EQ(read_text(path), "second");
  write_file_atomic(path, "");
  EXPECT_EQ(read_text(path), "");
}

TEST(File, AFailedWriteLeavesTheOldContentAndNoTemporaryFile) {
  const auto folder = fresh_folder("kvquant_file_failed");
  const auto path = (folder / "a.txt").string();
  write_file_atomic(path, "old");
  EXPECT_THROW(write_file_atomic(path,
                                 [](const ByteSink& sink) {
                                   sink(std::as_bytes(std::span("half", 4)));
                                   throw IoError("interrupted");
                                 }),
               IoError);
  EXPECT_EQ(read_text(path), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
}

TEST(File, ErrorsNameThePath) {
  const auto folder = fresh_folder("kvquant_file_errors");
  try {
    MappedFile file((folder / "missing").string());
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("missing"), std::string::npos);
  }
  EXPECT_THROW(MappedFile(folder.string()), IoError);
  EXPECT_THROW(write_file_atomic((folder / "no" / "such").string(), "x"), IoError);
}

}  // namespace
}  // namespace kvquant
