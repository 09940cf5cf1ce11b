#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

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

TEST(File, AFileThatIsThereIsNotCreatedAgain) {
  const auto folder = fresh_folder("kvquant_file_created");
  const auto path = (folder / "a.txt").string();
  EXPECT_TRUE(create_file_atomic(path, "first"));
  EXPECT_FALSE(create_file_atomic(path, "second"));
  EXPECT_EQ(read_text(path), "first");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
  EXPECT_THROW(create_file_atomic((folder / "no" / "such").string(), "x"), IoError);
}

TEST(File, TemporaryNamesTellHostsAndProcessesApart) {
  const auto folder = fresh_folder("kvquant_file_temporary");
  char host[256] = {};
  ASSERT_EQ(::gethostname(host, sizeof host - 1), 0);
  write_file_atomic((folder / "a.txt").string(), [&](const ByteSink&) {
    const std::string name = fs::directory_iterator(folder)->path().filename().string();
    EXPECT_EQ(name,
              "a.txt.tmp" + std::string(host).substr(0, 32) + "-" + std::to_string(::getpid()));
  });
}

TEST(File, APipeIsWrittenToAndNotReplaced) {
  const auto path = (fresh_folder("kvquant_file_pipe") / "pipe").string();
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int reader = ::open(path.c_str(), O_RDWR | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  check_writable(path);
  write_file_atomic(path, "through");
  char text[8] = {};
  EXPECT_EQ(::read(reader, text, sizeof text), 7);
  EXPECT_STREQ(text, "through");
  EXPECT_TRUE(fs::is_fifo(path));
  ::close(reader);
}

TEST(File, AFullDiskIsOutOfMemory) {
  if (!fs::is_character_file("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  const auto path = fresh_folder("kvquant_file_full") / "full";
  fs::create_symlink("/dev/full", path);
  EXPECT_THROW(write_file_atomic(path.string(), "x"), OutOfMemory);
  EXPECT_TRUE(fs::is_symlink(path));
}

TEST(File, WhatCanBeWrittenIsKnownBefore) {
  const auto folder = fresh_folder("kvquant_file_writable");
  const auto path = (folder / "a.txt").string();
  check_writable(path);
  EXPECT_TRUE(fs::is_empty(folder));
  write_file_atomic(path, "old");
  check_writable(path);
  EXPECT_EQ(read_text(path), "old");
  EXPECT_THROW(check_writable((folder / "no" / "such").string()), IoError);
  EXPECT_THROW(check_writable(folder.string()), IoError);
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
