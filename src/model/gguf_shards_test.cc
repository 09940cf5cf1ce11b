#include "model/gguf_shards.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "kvquant/error.h"
#include "model/gguf_test_builder.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

class GgufShards : public testing::Test {
 protected:
  const fs::path folder_ = fs::path(testing::TempDir()) /
                           (std::string("kvquant_shards_") +
                            testing::UnitTest::GetInstance()->current_test_info()->name());
  void SetUp() override {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    for (int i = 0; i < 3; ++i) write(i, shard(i));
  }
  void TearDown() override { fs::remove_all(folder_); }

  static GgufBuilder shard_of(uint32_t count, uint32_t index, uint32_t num_tensors) {
    GgufBuilder builder;
    builder.integer("split.count", count)
        .integer("split.no", index)
        .integer("split.tensors.count", num_tensors);
    return builder;
  }
  // Tensors "t0a", "t0b", "t1a", ... in three shards.
  static GgufBuilder shard(int index) {
    GgufBuilder builder = shard_of(3, static_cast<uint32_t>(index), 6);
    if (index == 0) builder.text("general.name", "whole");
    const auto letter = static_cast<char>('0' + index);
    for (const char* which : {"a", "b"}) {
      builder.tensor(std::string("t") + letter + which, {1}, 0, std::string(3, which[0]) + letter);
    }
    return builder;
  }

  std::string path(int index) const {
    return (folder_ / ("m-0000" + std::to_string(index + 1) + "-of-00003.gguf")).string();
  }
  void write(int index, const GgufBuilder& builder) const {
    write_file_atomic(path(index), builder.bytes());
  }
  static void open(const std::string& path) {
    std::vector<MappedFile> files;
    open_gguf_shards(MappedFile(path), files);
  }
  // Opening shard 0 fails with a message that begins with shard `culprit`'s path.
  void expect_refused(int culprit, const std::string& part) const {
    try {
      open(path(0));
      ADD_FAILURE() << "accepted: " << part;
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()).find(path(culprit)), 0u) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
};

TEST_F(GgufShards, AnyShardOpensAll) {
  for (int i = 0; i < 3; ++i) {
    std::vector<MappedFile> files;
    const Gguf gguf = open_gguf_shards(MappedFile(path(i)), files);
    EXPECT_EQ(gguf.path(), path(0));
    EXPECT_EQ(gguf.text("general.name"), "whole");
    ASSERT_EQ(files.size(), 3u);
    ASSERT_EQ(gguf.tensors().size(), 6u);
    EXPECT_EQ(gguf.tensors()[3].name, "t1b");
    EXPECT_EQ(gguf.tensors()[3].data.data()[0], std::byte{'b'});
    EXPECT_EQ(gguf.tensors()[5].data.data()[3], std::byte{'2'});
  }
}

TEST_F(GgufShards, WholeFilesMayHaveAnyName) {
  for (const uint32_t count : {0u, 1u}) {
    const std::string name = (folder_ / "whole.gguf").string();
    write_file_atomic(name, shard_of(count, 0, 0).bytes());
    EXPECT_NO_THROW(open(name));
  }
  const std::string bytes = shard_of(1, 0, 1).bytes();
  const Gguf two(as_byte_span(bytes), "whole.gguf");
  EXPECT_THROW(join_gguf_shards({two}), FormatError);  // says that a tensor is there
}

TEST_F(GgufShards, AMissingShardIsNamed) {
  fs::remove(path(2));
  try {
    open(path(1));
    ADD_FAILURE() << "accepted";
  } catch (const IoError& error) {
    EXPECT_EQ(error.what(), path(2) + ": missing: shard 3 of the 3 of a model");
  }
}

TEST_F(GgufShards, ShardsInAnothersPlaceAreRefused) {
  fs::copy_file(path(1), path(2), fs::copy_options::overwrite_existing);  // duplicated
  expect_refused(2, "split.no is 1, the name says 2");
  write(1, shard(2));  // swapped
  write(2, shard(1));
  expect_refused(1, "split.no is 2, the name says 1");
  write(0, shard(1));
  expect_refused(0, "its name must end with \"-00002-of-00003.gguf\"");
  const std::string renamed = (folder_ / "model.gguf").string();
  write_file_atomic(renamed, shard(0).bytes());
  EXPECT_THROW(open(renamed), FormatError);
}

TEST_F(GgufShards, ShardsOfAnotherModelAreRefused) {
  write(1, shard_of(4, 1, 6));
  expect_refused(1, "split.count is 4, that of its first shard 3");
  write(1, GgufBuilder());
  expect_refused(1, "split.count is 1");
  write(1, shard(1).text("general.name", "other"));
  expect_refused(1, "\"general.name\" differs from that of " + path(0));
  write(1, shard_of(3, 1, 7));
  expect_refused(1, "\"split.tensors.count\" differs");
  write(1, shard_of(3, 1, 6).tensor("t2a", {1}, 0, "abcd").tensor("t1a", {1}, 0, "abcd"));
  expect_refused(2, "tensor \"t2a\" is in two shards");
  write(1, shard_of(3, 1, 6).tensor("t1a", {1}, 0, "abcd"));
  expect_refused(0, "split.tensors.count is 6, but the 3 shards have 5 tensors");
  write_file_atomic(path(1), "GGUF");
  expect_refused(1, "");
}

TEST_F(GgufShards, NumbersOfShardsAreChecked) {
  const auto paths = [](const GgufBuilder& builder) {
    const std::string bytes = builder.bytes();
    return gguf_shard_paths(Gguf(as_byte_span(bytes), "m-00001-of-00003.gguf"));
  };
  EXPECT_EQ(paths(shard(0)),
            (std::vector<std::string>{"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                      "m-00003-of-00003.gguf"}));
  EXPECT_THROW(paths(shard_of(3, 3, 6)), FormatError);
  EXPECT_THROW(paths(shard_of(65536, 0, 6)), FormatError);
  EXPECT_THROW(paths(GgufBuilder().integer("split.count", 3)), FormatError);
  EXPECT_THROW(paths(GgufBuilder().text("split.count", "3")), FormatError);
}

}  // namespace
}  // namespace kvquant
