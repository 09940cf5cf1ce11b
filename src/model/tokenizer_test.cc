#include "model/tokenizer.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>
#include <thread>

#include "kvquant/error.h"
#include "model/byte_alphabet.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_test_text.h"
#include "model/utf8.h"

namespace kvquant {
namespace {

// The properties' seed, unless the environment names one.
[[maybe_unused]] const int kSeeded = setenv("RC_PARAMS", "seed=42", 0);

using Ids = std::vector<int32_t>;

constexpr int32_t kEnd = 256;  // ids of tiny_data()
constexpr int32_t kTool = 257;
constexpr int32_t kHe = 258;
constexpr int32_t kSpaceHe = 260;

// All bytes with their value as id, a special and an added token, three merges.
TokenizerData tiny_data() {
  TokenizerData data;
  for (int byte = 0; byte < 256; ++byte) {
    data.tokens.push_back(to_byte_alphabet(std::string(1, static_cast<char>(byte))));
  }
  for (const char* text : {"<|end|>", "<tool>", "he", "\u0120h", "\u0120he"}) {
    data.tokens.push_back(text);
  }
  data.merges = {{"h", "e"}, {"\u0120", "he"}, {"\u0120", "h"}};
  data.special = {kEnd};
  data.added = {kTool};
  data.bos = data.eos = kEnd;
  return data;
}

const Tokenizer& embedded() {
  static const Tokenizer tokenizer(load_tokenizer_folder(KVQUANT_SOURCE_DIR "/assets/ref5m"));
  return tokenizer;
}

TEST(Tokenizer, WordsAreMergedAndReadBack) {
  const Tokenizer tokenizer(tiny_data());
  EXPECT_EQ(tokenizer.encode("he he x"), (Ids{kHe, kSpaceHe, ' ', 'x'}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.decode(Ids{kHe, kSpaceHe, ' ', 'x'}), "he he x");
  EXPECT_EQ(tokenizer.decode({}), "");
  EXPECT_EQ(tokenizer.vocab_size(), 261);
}

TEST(Tokenizer, SpecialTokensAreTokensOrText) {
  const Tokenizer tokenizer(tiny_data());
  EXPECT_EQ(tokenizer.encode("he<|end|>he"), (Ids{kHe, kEnd, kHe}));
  EXPECT_EQ(tokenizer.encode("<|end|><|end|>"), (Ids{kEnd, kEnd}));
  const Ids as_text = tokenizer.encode("<|end|><tool>", Tokenizer::Special::kAsText);
  EXPECT_EQ(as_text, (Ids{'<', '|', 'e', 'n', 'd', '|', '>', kTool}));
}

TEST(Tokenizer, SpecialTokensArePrintedOnRequest) {
  const Tokenizer tokenizer(tiny_data());
  const Ids ids{kHe, kEnd, kTool};
  EXPECT_EQ(tokenizer.decode(ids), "he<tool>");
  EXPECT_EQ(tokenizer.decode(ids, true), "he<|end|><tool>");
  EXPECT_TRUE(tokenizer.is_special(kEnd));
  EXPECT_FALSE(tokenizer.is_special(kTool));
  EXPECT_FALSE(tokenizer.is_special(-1));
}

TEST(Tokenizer, BosIsPutInFrontAsConfigured) {
  TokenizerData data = tiny_data();
  data.add_bos = true;
  const Tokenizer tokenizer(data);
  EXPECT_EQ(tokenizer.encode("he"), (Ids{kEnd, kHe}));
  EXPECT_EQ(tokenizer.encode(""), (Ids{kEnd}));
  EXPECT_EQ(tokenizer.encode("he", Tokenizer::Special::kParse, Tokenizer::Bos::kNever), Ids{kHe});
}

TEST(Tokenizer, AWholeWordIsTakenAsItIsWhenMergesAreIgnored) {
  TokenizerData data = tiny_data();
  data.tokens.push_back("xyz");  // no merges lead there
  EXPECT_EQ(Tokenizer(data).encode("xyz"), (Ids{'x', 'y', 'z'}));
  data.ignore_merges = true;
  EXPECT_EQ(Tokenizer(data).encode("xyz he"), (Ids{261, kSpaceHe}));
}

TEST(Tokenizer, BytesWithoutATokenAreLeftOutOrUnknown) {
  TokenizerData data = tiny_data();
  data.tokens['#'] = "no byte";
  EXPECT_EQ(Tokenizer(data).encode("h##e"), (Ids{'h', 'e'}));
  data.unk = kEnd;
  EXPECT_EQ(Tokenizer(data).encode("h##e"), (Ids{'h', kEnd, kEnd, 'e'}));
  data.fuse_unk = true;
  EXPECT_EQ(Tokenizer(data).encode("h##e"), (Ids{'h', kEnd, 'e'}));
}

TEST(Tokenizer, TextThatIsNotUtf8IsRefusedWithItsOffset) {
  const Tokenizer tokenizer(tiny_data());
  try {
    tokenizer.encode("abc\xFFz");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "encode: the text is not UTF-8 at byte 3");
  }
}

TEST(Tokenizer, IdsThatAreNoTokensAreRefused) {
  const Tokenizer tokenizer(tiny_data());
  EXPECT_THROW(tokenizer.decode(Ids{261}), std::invalid_argument);
  EXPECT_THROW(tokenizer.decode(Ids{-1}), std::invalid_argument);
}

TEST(Tokenizer, DataThatCantBeATokenizerIsRefused) {
  const auto expect_refused = [](auto change) {
    TokenizerData data = tiny_data();
    change(data);
    EXPECT_THROW(Tokenizer{data}, FormatError);
  };
  expect_refused([](TokenizerData& data) { data = {}; });
  expect_refused([](TokenizerData& data) { data.tokens.push_back("he"); });
  expect_refused([](TokenizerData& data) { data.special.push_back(261); });
  expect_refused([](TokenizerData& data) { data.added.push_back(-1); });
  expect_refused([](TokenizerData& data) { data.bos = 261; });
  expect_refused([](TokenizerData& data) { data.eos = -2; });
  expect_refused([](TokenizerData& data) { data.tokens[kEnd] = ""; });
  expect_refused([](TokenizerData& data) {
    data.add_bos = true;
    data.bos = -1;
  });
}

TEST(Tokenizer, MergesOfUnknownTokensAreIgnored) {
  TokenizerData data = tiny_data();
  data.merges.insert(data.merges.begin(), {{"h", "x"}, {"unknown", "h"}, {"", ""}});
  EXPECT_EQ(Tokenizer(data).encode("he hx"), (Ids{kHe, 259, 'x'}));
}

TokenizerData metaspace_data() {
  TokenizerData data;
  data.pre_tokenizer = PreTokenizer::kMetaspace;
  data.tokens = {"<unk>",   "<s>",    "\u2581", "a",       "b",
                 "\u2581a", "<0xC3>", "<0xA9>", "a\u2581", "<0x0A>"};
  data.merges = {{"a", "\u2581"}, {"\u2581", "a"}};
  data.special = {0, 1};
  data.unk = 0;
  data.fuse_unk = true;
  data.byte_fallback = true;
  return data;
}

TEST(Tokenizer, MetaspaceModelsMergeAcrossWordsWithASpaceInFront) {
  const Tokenizer tokenizer(metaspace_data());
  EXPECT_EQ(tokenizer.encode("a b"), (Ids{2, 8, 4}));
  EXPECT_EQ(tokenizer.encode("b a"), (Ids{2, 4, 5}));
  EXPECT_EQ(tokenizer.decode(Ids{2, 8, 4}), "a b");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("  b")), "  b");
  EXPECT_EQ(tokenizer.encode(""), Ids{});
}

TEST(Tokenizer, MetaspaceCharactersWithoutATokenBecomeBytesOrOneUnknown) {
  const Tokenizer tokenizer(metaspace_data());
  EXPECT_EQ(tokenizer.encode("b\u00E9\n"), (Ids{2, 4, 6, 7, 9}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("b\u00E9\n")), "b\u00E9\n");
  EXPECT_EQ(tokenizer.encode("b\u20ACzb"), (Ids{2, 4, 0, 4}));
}

TEST(Tokenizer, MetaspaceSpecialTextsAreSearchedBeforeOrAfterNormalization) {
  TokenizerData data = metaspace_data();
  EXPECT_EQ(Tokenizer(data).encode("<s>b<s>"), (Ids{1, 2, 4, 1}));
  data.match_normalized = {1};
  EXPECT_EQ(Tokenizer(data).encode("<s>b <s>"), (Ids{1, 4, 1}));
}

TEST(Tokenizer, TheEmbeddedVocabularyGivesTheReferenceIds) {
  // From the tokenizers package 0.23.3 with the same tokenizer.json, add_special_tokens=False.
  const std::vector<std::pair<std::string, Ids>> expected{
      {"Hello world", {40, 533, 79, 961}},
      {"In 1851, the  ship's crew\n\nsailed.",
       {1798, 221, 17, 24, 21, 17, 12, 262, 221, 2064, 355, 277, 1881, 199, 199, 83, 3392, 14}},
      {"na\u00EFve \u6F22\u5B57 \U0001F600",
       {1520, 128, 108, 311, 221, 163, 121, 96, 162, 256, 246, 221, 173, 254, 247, 223}},
      {"I'LL go<|endoftext|>on", {41, 7, 44, 44, 483, 0, 280}},
  };
  for (const auto& [text, ids] : expected) {
    EXPECT_EQ(embedded().encode(text, Tokenizer::Special::kParse, Tokenizer::Bos::kNever), ids);
  }
  EXPECT_EQ(embedded().encode("Hello").front(), embedded().data().bos);
}

// Characters of all planes, with runs of whitespace, digits and quotes.
rc::Gen<std::string> utf8_text() {
  const auto character = rc::gen::weightedOneOf<char32_t>(
      {{6, rc::gen::cast<char32_t>(rc::gen::inRange(0, 0x80))},
       {4, rc::gen::elementOf(std::u32string(U" \n\t'sStT<|endoftext|>0129\u00A0\u017F"))},
       {2, rc::gen::cast<char32_t>(rc::gen::inRange(0x80, 0xD800))},
       {1, rc::gen::cast<char32_t>(rc::gen::inRange(0xE000, 0x110000))}});
  return text_of(character);
}

RC_GTEST_PROP(TokenizerProperty, DecodeUndoesEncode, ()) {
  const std::string text = *utf8_text();
  const auto as_text = Tokenizer::Special::kAsText;
  const auto ids = embedded().encode(text, as_text, Tokenizer::Bos::kNever);
  RC_ASSERT(embedded().decode(ids, true) == text);
}

RC_GTEST_PROP(TokenizerProperty, AStreamSaysTheSameAndOnlyWholeCharacters, ()) {
  const std::string text = *utf8_text();
  StreamDecoder stream(embedded());
  std::string streamed;
  for (const int32_t id : embedded().encode(text, Tokenizer::Special::kAsText)) {
    const std::string part = stream.next(id);
    RC_ASSERT(find_invalid_utf8(part) == -1);
    streamed += part;
  }
  RC_ASSERT(streamed == text);
  RC_ASSERT(stream.finish().empty());
}

TEST(Tokenizer, ThreadsGetTheSameIds) {
  const std::string text =
      "Several threads read this, 123 times over.\n\n  And <|endoftext|> that.";
  const Ids expected = embedded().encode(text);
  std::vector<int> num_wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : num_wrong) {
    threads.emplace_back([&text, &expected, &count] {
      for (int i = 0; i < 50; ++i) count += embedded().encode(text) != expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace kvquant
