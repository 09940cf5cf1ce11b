#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/test_path.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

std::span<const std::byte> as_span(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}

std::string small_file() {
  return file_of(R"({"__metadata__":{"format":"pt"},)"
                 R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                 R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},)"
                 R"("c":{"dtype":"U8","shape":[],"data_offsets":[14,15]},)"
                 R"("e":{"dtype":"I64","shape":[0,5],"data_offsets":[15,15]}})",
                 "bbbbbbbbaaaaaac");
}

void expect_error(const std::string& header, const std::string& part) {
  const std::string bytes = file_of(header, "12345678");
  try {
    parse_safetensors(as_span(bytes), "m.safetensors");
    ADD_FAILURE() << "accepted: " << header;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find("m.safetensors: "), 0u) << error.what();
  }
}

TEST(Safetensors, TensorsAndMetadataAreRead) {
  const std::string bytes = small_file();
  const Safetensors file = parse_safetensors(as_span(bytes), "m");
  EXPECT_EQ(file.metadata.at("format"), "pt");
  ASSERT_EQ(file.tensors.size(), 4u);
  EXPECT_EQ(file.find("a")->dtype, "BF16");
  EXPECT_EQ(file.find("a")->shape, (std::vector<int64_t>{3}));
  EXPECT_EQ(file.find("a")->data.size(), 6u);
  EXPECT_EQ(file.find("a")->data[0], std::byte{'a'});
  EXPECT_EQ(file.find("b")->data[7], std::byte{'b'});
  EXPECT_EQ(file.find("c")->data.size(), 1u);
  EXPECT_EQ(file.find("e")->data.size(), 0u);
  EXPECT_EQ(file.find("d"), nullptr);
}

TEST(Safetensors, AnEmptyFileOfTensorsIsRead) {
  EXPECT_TRUE(parse_safetensors(as_span(file_of("{}", "")), "m").tensors.empty());
}

TEST(Safetensors, WrongHeadersAreRefusedWithTheReason) {
  expect_error("{", "not valid JSON");
  expect_error("[]", "not a JSON object");
  expect_error("{}", "8 bytes behind the last tensor");
  expect_error(R"({"a":3})", "not described");
  expect_error(R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", "dtype \"F33\"");
  expect_error(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", "dtype");
  expect_error(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", "shape");
  expect_error(R"({"a":{"dtype":"F32","shape":[2]}})", "data_offsets");
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", "data_offsets");
  expect_error(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "data_offsets");
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "data_offsets");
  expect_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", "data_offsets");
  expect_error(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "span 8 bytes");
  expect_error(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "span 8 bytes");
  expect_error(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}})",
               "needs more");
  expect_error(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
               R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
               "overlaps");
  expect_error(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
               R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
               "gap");
  expect_error(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
               R"("a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
               "twice");
  expect_error(R"({"__metadata__":{"x":1},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
               "__metadata__");
}

TEST(Safetensors, EveryTruncationAndEveryFlippedBitIsHandled) {
  const std::string bytes = small_file();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(parse_safetensors(as_span(bytes).first(size), "m"), FormatError) << size;
  }
  for (size_t i = 0; i < bytes.size() - 15; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ 1 << bit);
      try {
        parse_safetensors(as_span(flipped), "m");  // a changed name may be fine
      } catch (const FormatError&) {
      }
    }
  }
}

TEST(SafetensorsIndex, FileNamesMustStayInTheFolder) {
  const auto files = parse_safetensors_index(
      R"({"metadata":{"total_size":3},"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}})",
      "i");
  EXPECT_EQ(files.at("a"), "x-1.safetensors");
  EXPECT_EQ(files.size(), 2u);
  for (const char* name : {"", ".", "..", "../x", "/etc/passwd", "a/b", "a\\\\b", "a\\u0000b"}) {
    const std::string text = R"({"weight_map":{"a":")" + std::string(name) + "\"}}";
    EXPECT_THROW(parse_safetensors_index(text, "i"), FormatError) << name;
  }
  EXPECT_THROW(parse_safetensors_index(R"({"weight_map":{"a":1}})", "i"), FormatError);
  EXPECT_THROW(parse_safetensors_index(R"({"weight_map":[]})", "i"), FormatError);
  EXPECT_THROW(parse_safetensors_index("{}", "i"), FormatError);
}

class SafetensorsWriter : public testing::Test {
 protected:
  std::string path_ = test::test_path("file.safetensors");
  void TearDown() override { std::filesystem::remove(path_); }
};

TEST_F(SafetensorsWriter, WhatWasWrittenIsRead) {
  const std::vector<SafetensorsEntry> entries = {
      {"second", "U8", {3}}, {"first", "F32", {2, 1}}, {"large", "U8", {3, 1 << 20}}};
  const std::vector<std::string> data = {"abc", "12345678", std::string(3 << 20, 'L')};
  write_safetensors(path_, entries, {{"k", "v"}}, [&](size_t i, const ByteSink& sink) {
    sink(as_span(data[i]).first(1));  // in parts
    sink(as_span(data[i]).subspan(1));
  });
  const MappedFile mapped(path_);
  const Safetensors file = parse_safetensors(mapped.bytes(), path_);
  EXPECT_EQ(file.metadata.at("k"), "v");
  ASSERT_EQ(file.tensors.size(), 3u);
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto* tensor = file.find(entries[i].name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->dtype, entries[i].dtype);
    EXPECT_EQ(tensor->shape, entries[i].shape);
    ASSERT_EQ(tensor->data.size(), data[i].size());
    EXPECT_EQ(std::memcmp(tensor->data.data(), data[i].data(), data[i].size()), 0);
  }
  EXPECT_EQ((file.find("second")->data.data() - mapped.bytes().data()) % 64, 0);
}

TEST_F(SafetensorsWriter, WrongEntriesAreRefusedAndLeaveNoFile) {
  const auto write = [&](std::vector<SafetensorsEntry> entries, const std::string& data) {
    write_safetensors(path_, entries, {},
                      [&](size_t, const ByteSink& sink) { sink(as_span(data)); });
  };
  EXPECT_THROW(write({{"a", "F32", {2}}}, "1234567"), std::invalid_argument);
  EXPECT_THROW(write({{"a", "F32", {2}}}, "123456789"), std::invalid_argument);
  EXPECT_THROW(write({{"a", "F99", {2}}}, "12345678"), std::invalid_argument);
  EXPECT_THROW(write({{"a", "U8", {-8}}}, "12345678"), std::invalid_argument);
  EXPECT_THROW(write({{"a", "U8", {1}}, {"a", "U8", {1}}}, "1"), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace kvquant
