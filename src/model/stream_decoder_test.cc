#include <gtest/gtest.h>

#include "model/byte_alphabet.h"
#include "model/tokenizer.h"

namespace kvquant {
namespace {

// All bytes with their value as id, then a special token and one that cuts a character.
const Tokenizer& bytes_tokenizer() {
  static const Tokenizer tokenizer([] {
    TokenizerData data;
    for (int byte = 0; byte < 256; ++byte) {
      data.tokens.push_back(to_byte_alphabet(std::string(1, static_cast<char>(byte))));
    }
    data.tokens.push_back("<|end|>");
    data.tokens.push_back(to_byte_alphabet("x\xE2\x82"));
    data.special = {256};
    return data;
  }());
  return tokenizer;
}

TEST(StreamDecoder, ACharacterIsHeldBackUntilItIsWhole) {
  StreamDecoder stream(bytes_tokenizer());
  EXPECT_EQ(stream.next('a'), "a");
  EXPECT_EQ(stream.next(257), "x");
  EXPECT_EQ(stream.next(0xAC), "\u20AC");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, BytesThatCantBecomeACharacterAreReplaced) {
  StreamDecoder stream(bytes_tokenizer());
  EXPECT_EQ(stream.next(0xFF), "\uFFFD");
  EXPECT_EQ(stream.next(0x80), "\uFFFD");
  EXPECT_EQ(stream.next(257), "x");
  EXPECT_EQ(stream.next('a'), "\uFFFDa");
}

TEST(StreamDecoder, FinishReplacesWhatWasHeldBack) {
  StreamDecoder stream(bytes_tokenizer());
  EXPECT_EQ(stream.next(0xF0), "");
  EXPECT_EQ(stream.next(0x9F), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, SpecialTokensSayNothing) {
  StreamDecoder stream(bytes_tokenizer());
  EXPECT_EQ(stream.next(256), "");
  EXPECT_THROW(stream.next(258), std::invalid_argument);
}

TEST(StreamDecoder, ASpaceInFrontIsKeptForThePromptGoesBeforeIt) {
  TokenizerData data;
  data.pre_tokenizer = PreTokenizer::kMetaspace;
  data.tokens = {"\u2581a"};
  const Tokenizer tokenizer(data);
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.next(0), " a");
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{0}), "a");
}

}  // namespace
}  // namespace kvquant
