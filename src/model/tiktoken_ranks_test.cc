#include "model/tiktoken_ranks.h"

#include <gtest/gtest.h>

#include "kvquant/error.h"
#include "model/tokenizer.h"

namespace kvquant {
namespace {

// "a", "b", " ", "ab", " ab", the byte 0xC3
constexpr const char* kRanks = "YQ== 0\nYg== 1\nIA== 2\nYWI= 3\nIGFi 4\r\nww== 5\n";

TEST(TiktokenRanks, TokensMergeByRankAndWholeWordsAreTaken) {
  EXPECT_TRUE(is_tiktoken_ranks(kRanks));
  const TokenizerData data = tokenizer_from_tiktoken_ranks(kRanks);
  EXPECT_EQ(data.pre_tokenizer, PreTokenizer::kLlama3);
  const Tokenizer tokenizer(data);
  EXPECT_EQ(tokenizer.encode("ab aab"), (std::vector<int32_t>{3, 2, 0, 3}));
  EXPECT_EQ(tokenizer.encode("ab ab"), (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(tokenizer.token_bytes(5), "\xC3");
}

TEST(TiktokenRanks, OtherTextsAreNoRanks) {
  for (const char* text : {"", "\n", "YQ==", "YQ== x", "YQ== 1x", "Y*== 0", "YQ 0", "a 0", " 0"}) {
    EXPECT_FALSE(is_tiktoken_ranks(text)) << text;
  }
}

TEST(TiktokenRanks, ALineThatIsWrongIsNamed) {
  try {
    tokenizer_from_tiktoken_ranks("YQ== 0\nYg== 2\n");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_STREQ(error.what(),
                 "tokenizer.model: line 2 is \"Yg== 2\", not a token in base64 and 1");
  }
  EXPECT_THROW(tokenizer_from_tiktoken_ranks("YQ== 0\n\n"), FormatError);
}

}  // namespace
}  // namespace kvquant
