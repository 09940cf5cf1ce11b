#include "model/gguf.h"

#include <gtest/gtest.h>

#include <functional>

#include "kvquant/error.h"
#include "model/gguf_test_builder.h"

namespace kvquant {
namespace {

GgufBuilder small_file() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .integer("count", 7)
      .number("ratio", 0.5f)
      .boolean("flag", true)
      .texts("words", {"a", "", "long word"})
      .integers("ids", {1, -2, 3})
      .tensor("first", {4, 2}, 0, std::string(32, '\x01'))
      .tensor("second", {32}, 3, std::string(20, '\x02'));
  return builder;
}

void expect_error(const std::string& bytes, const std::string& part) {
  try {
    Gguf gguf(as_byte_span(bytes), "a.gguf");
    ADD_FAILURE() << "accepted: " << part;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find("a.gguf: "), 0u) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

TEST(Gguf, MetadataAndTensorsAreRead) {
  const std::string bytes = small_file().bytes();
  const Gguf gguf(as_byte_span(bytes), "a.gguf");
  EXPECT_EQ(gguf.version(), 3u);
  EXPECT_EQ(gguf.text("general.architecture"), "llama");
  EXPECT_EQ(gguf.integer("count"), 7);
  EXPECT_EQ(gguf.number("ratio"), 0.5);
  EXPECT_EQ(gguf.number("count"), 7.0);
  EXPECT_EQ(gguf.boolean("flag"), true);
  EXPECT_EQ(gguf.texts("words"), (std::vector<std::string>{"a", "", "long word"}));
  EXPECT_EQ(gguf.integers("ids"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(gguf.text("absent"), std::nullopt);
  ASSERT_EQ(gguf.tensors().size(), 2u);
  EXPECT_EQ(gguf.tensors()[0].name, "first");
  EXPECT_EQ(gguf.tensors()[0].shape, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(gguf.tensors()[0].data.size(), 32u);
  EXPECT_EQ(gguf.tensors()[0].data[0], std::byte{1});
  EXPECT_EQ(gguf.tensors()[1].format->name, std::string("Q4_1"));
  EXPECT_EQ(gguf.tensors()[1].data.size(), 20u);
  EXPECT_EQ(gguf.tensors()[1].data[19], std::byte{2});
}

TEST(Gguf, IntegersOfEveryWidthAreRead) {
  GgufBuilder builder;
  builder.raw("u8", 0, "\xff")
      .raw("i8", 1, "\xff")
      .raw("u16", 2, "\xff\xff")
      .raw("i16", 3, "\xfe\xff")
      .raw("i32", 5, "\xfd\xff\xff\xff")
      .raw("u64", 10, std::string_view("\x01\0\0\0\x01\0\0\0", 8))
      .raw("i64", 11, std::string(8, '\xff'))
      .raw("huge", 10, std::string(8, '\xff'))
      .raw("f64", 12, std::string_view("\0\0\0\0\0\0\xf8\x3f", 8));
  const std::string bytes = builder.bytes();
  const Gguf gguf(as_byte_span(bytes), "a.gguf");
  EXPECT_EQ(gguf.integer("u8"), 255);
  EXPECT_EQ(gguf.integer("i8"), -1);
  EXPECT_EQ(gguf.integer("u16"), 65535);
  EXPECT_EQ(gguf.integer("i16"), -2);
  EXPECT_EQ(gguf.integer("i32"), -3);
  EXPECT_EQ(gguf.integer("u64"), 0x100000001);
  EXPECT_EQ(gguf.integer("i64"), -1);
  EXPECT_THROW(gguf.integer("huge"), FormatError);
  EXPECT_EQ(gguf.number("f64"), 1.5);
}

TEST(Gguf, ValuesOfAnotherTypeAreRefused) {
  const std::string bytes = small_file().bytes();
  const Gguf gguf(as_byte_span(bytes), "a.gguf");
  EXPECT_THROW(gguf.text("count"), FormatError);
  EXPECT_THROW(gguf.text("words"), FormatError);
  EXPECT_THROW(gguf.integer("general.architecture"), FormatError);
  EXPECT_THROW(gguf.integer("ratio"), FormatError);
  EXPECT_THROW(gguf.integer("ids"), FormatError);
  EXPECT_THROW(gguf.number("flag"), FormatError);
  EXPECT_THROW(gguf.boolean("count"), FormatError);
  EXPECT_THROW(gguf.texts("ids"), FormatError);
  EXPECT_THROW(gguf.texts("general.architecture"), FormatError);
  EXPECT_THROW(gguf.integers("words"), FormatError);
  EXPECT_THROW(gguf.integers("count"), FormatError);
}

TEST(Gguf, AFileWithoutTensorsNeedsNoPadding) {
  GgufBuilder builder;
  builder.integer("count", 1);
  EXPECT_TRUE(Gguf(as_byte_span(builder.header()), "a.gguf").tensors().empty());
}

TEST(Gguf, TheAlignmentOfTheMetadataIsUsed) {
  GgufBuilder builder;
  builder.alignment = 64;
  builder.integer("general.alignment", 64).tensor("a", {1}, 0, "abcd").tensor("b", {1}, 0, "efgh");
  const std::string bytes = builder.bytes();
  const Gguf gguf(as_byte_span(bytes), "a.gguf");
  EXPECT_EQ(gguf.tensors()[1].data[0], std::byte{'e'});
}

TEST(Gguf, WrongFilesAreRefusedWithTheReason) {
  expect_error("", "not a GGUF file");
  expect_error("GGUX....", "not a GGUF file");
  expect_error("GGUF", "the version");
  GgufBuilder builder = small_file();
  builder.version = 1;
  expect_error(builder.bytes(), "version 1, not 2 or 3");
  builder.version = 0x03000000;
  expect_error(builder.bytes(), "big-endian");
  expect_error(small_file().integer("count", 1).bytes(), "two values of \"count\"");
  expect_error(small_file().tensor("first", {1}, 0, "abcd").bytes(), "two tensors of the name");
  expect_error(small_file().integer("general.alignment", 48).bytes(), "general.alignment 48");
  expect_error(small_file().integer("general.alignment", 0).bytes(), "general.alignment 0");
  expect_error(small_file().raw("x", 13, "").bytes(), "\"x\" has unknown type 13");
  expect_error(
      small_file().raw("x", 9, std::string_view("\x09\0\0\0\x01\0\0\0\0\0\0\0", 12)).bytes(),
      "array of arrays");
  expect_error(
      small_file().raw("x", 9, "\x04" + std::string(3, '\0') + std::string(8, '\x7f')).bytes(),
      "more than the file");
  expect_error(small_file().raw("x", 8, std::string(8, '\xff')).bytes(), "ends behind");
}

TEST(Gguf, WrongTensorsAreRefusedWithTheReason) {
  const auto with = [](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    return small_file().tensor_header("x", dims, type, offset).bytes() + std::string(256, 'x');
  };
  expect_error(with({}, 0, 64), "0 dimensions");
  expect_error(with({1, 1, 1, 1, 1}, 0, 64), "5 dimensions");
  expect_error(with({0}, 0, 64), "dimension 0");
  expect_error(with({1ull << 32, 1ull << 32}, 0, 64), "too large");
  expect_error(with({1ull << 62}, 0, 64), "too large");
  expect_error(with({1}, 11, 64),
               "type Q3_K; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0");
  expect_error(with({128}, 12, 64), "rows of 128 are not whole blocks of 256");
  expect_error(with({1}, 77, 64), "type 77");
  expect_error(with({33}, 8, 64), "rows of 33");
  expect_error(with({1}, 0, 65), "offset 65");
  expect_error(with({1}, 0, 1ull << 63), "end behind");
  expect_error(with({4096}, 0, 64), "end behind");
  expect_error(with({1}, 0, 0), "overlap");
  expect_error(with({1}, 0, 32), "overlap");
  expect_error(small_file().tensor(std::string(65, 'n'), {1}, 0, "abcd").bytes(), "65 bytes");
}

TEST(Gguf, EveryTruncationAndEveryFlippedBitIsHandled) {
  const std::string bytes = small_file().bytes();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(Gguf(as_byte_span(bytes).first(size), "a.gguf"), FormatError) << size;
  }
  const size_t header_bytes = small_file().header().size();
  for (size_t i = 0; i < header_bytes; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ 1 << bit);
      try {
        const Gguf gguf(as_byte_span(flipped), "a.gguf");
        for (const auto& tensor : gguf.tensors()) {
          ASSERT_LE(tensor.data.data() + tensor.data.size(),
                    as_byte_span(flipped).data() + flipped.size());
        }
      } catch (const FormatError&) {
      }
    }
  }
}

}  // namespace
}  // namespace kvquant
