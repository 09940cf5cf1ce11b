#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/sentencepiece_model.h"
#include "model/tokenizer.h"
#include "model/tokenizer_json.h"

namespace kvquant {
namespace {

// Protobuf by hand: one byte of tag, one of length or value, so everything is below 128.
std::string bytes_field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}

std::string number_field(int number, int value) {
  const int tag = number << 3;
  std::string bytes;
  if (tag >= 128) bytes += static_cast<char>((tag & 127) | 128);
  bytes += static_cast<char>(tag < 128 ? tag : tag >> 7);
  return bytes + static_cast<char>(value);
}

std::string piece(const std::string& text, int type = 1) {
  const std::string score("\x15\0\0\x80\xBF", 5);  // field 2: -1.0f
  return bytes_field(1, bytes_field(1, text) + score + number_field(3, type));
}

const std::string kPieces = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3) +
                            piece("\u2581") + piece("a") + piece("\u2581a");
const std::string kBytePairs = bytes_field(2, number_field(3, 2));
const std::string kKeepsSpaces = bytes_field(3, number_field(4, 0));

std::string refusal(const std::string& bytes) {
  try {
    tokenizer_from_sentencepiece(bytes);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(SentencepieceReader, BytePairsAreReadWithScoresAndTypes) {
  const TokenizerData data = tokenizer_from_sentencepiece(kPieces + kBytePairs + kKeepsSpaces);
  EXPECT_EQ(data.tokens.size(), 6u);
  EXPECT_EQ(data.special, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(data.scores[5], -1.0f);
  EXPECT_EQ(data.unk, 0);
  EXPECT_EQ(data.bos, 1);
  EXPECT_EQ(data.eos, 2);
  EXPECT_TRUE(data.add_bos);
  EXPECT_TRUE(data.sentencepiece.empty());
  EXPECT_EQ(Tokenizer(data).encode("a a"), (std::vector<int32_t>{1, 5, 5}));
}

TEST(SentencepieceReader, WhatMergesCantDoIsLeftToTheLibrary) {
  EXPECT_FALSE(tokenizer_from_sentencepiece(kPieces).sentencepiece.empty());  // unigram
  EXPECT_FALSE(tokenizer_from_sentencepiece(kPieces + piece("x", 5) + kBytePairs + kKeepsSpaces)
                   .sentencepiece.empty());
}

TEST(SentencepieceReader, SpacesAreRemovedUnlessTheModelKeepsThem) {
  const TokenizerData data = tokenizer_from_sentencepiece(kPieces + kBytePairs);
  EXPECT_TRUE(data.sentencepiece.empty());
  const auto encode = [&](const char* text) {
    return Tokenizer(data).encode(text, Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
  };
  EXPECT_EQ(encode("  a   a "), (std::vector<int32_t>{5, 5}));
  EXPECT_EQ(encode("   "), std::vector<int32_t>{});
}

TEST(SentencepieceReader, WhatIsNotSupportedIsNamed) {
  EXPECT_EQ(refusal(""), "tokenizer.model: it has no pieces");
  EXPECT_EQ(refusal(kPieces + bytes_field(2, number_field(3, 4))),
            "tokenizer.model: model type 4 is not supported; 1 (unigram) and 2 (byte pairs) are");
  EXPECT_NE(refusal(kPieces + bytes_field(3, bytes_field(2, "map"))).find("a normalizer with"),
            std::string::npos);
  EXPECT_NE(refusal(kPieces + bytes_field(5, bytes_field(2, "map"))).find("a denormalizer with"),
            std::string::npos);
  EXPECT_NE(refusal(kPieces + bytes_field(2, number_field(24, 1))).find("as_suffix"),
            std::string::npos);
  EXPECT_NE(refusal(kPieces + bytes_field(3, number_field(5, 0))).find("escape_whitespaces"),
            std::string::npos);
  EXPECT_EQ(refusal(piece("")), "tokenizer.model: piece 0 is empty");
  EXPECT_EQ(refusal(piece("\xFF")), "tokenizer.model: piece 0 is not UTF-8");
  EXPECT_EQ(refusal(piece("a", 7)), "tokenizer.model: piece 0 has type 7");
}

TEST(SentencepieceReader, DamagedMessagesAreRefused) {
  EXPECT_EQ(refusal("\x0B"), "tokenizer.model: a field has wire type 3");
  EXPECT_EQ(refusal(std::string(11, '\xFF')), "tokenizer.model: a number has more than 64 bits");
  for (size_t size = 1; size < piece("abc").size(); ++size) {
    EXPECT_EQ(refusal(piece("abc").substr(0, size)), "tokenizer.model: it ends inside a field");
  }
}

TEST(SentencepieceReader, AFoldersConfigAddsTokensBehindThePieces) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / "kvquant_sentencepiece_folder";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const auto write = [&](const char* name, const std::string& text) {
    write_file_atomic((folder / name).string(), text);
  };
  write("tokenizer.model", kPieces + kBytePairs + kKeepsSpaces);
  EXPECT_EQ(load_tokenizer_folder(folder.string()).tokens.size(), 6u);
  write("added_tokens.json", R"({"<tool>": 7, "<pad>": 6})");
  write("tokenizer_config.json", R"({"eos_token": "<|end|>", "add_bos_token": false,
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": true},
                             "8": {"content": "<|end|>", "special": true}}})");
  const TokenizerData data = load_tokenizer_folder(folder.string());
  EXPECT_EQ(data.tokens.size(), 9u);
  EXPECT_EQ(data.added, (std::vector<int32_t>{6, 7}));
  EXPECT_EQ(data.special.back(), 8);
  EXPECT_EQ(data.eos, 8);
  EXPECT_EQ(Tokenizer(data).encode("a<tool> a<|end|>"), (std::vector<int32_t>{5, 7, 3, 5, 8}));
  for (const char* wrong : {R"({"<tool>": 8})", R"({"<tool>": 5})", R"({"<tool>": -1})", "[]"}) {
    write("added_tokens.json", wrong);
    EXPECT_THROW(load_tokenizer_folder(folder.string()), FormatError) << wrong;
  }
}

}  // namespace
}  // namespace kvquant
