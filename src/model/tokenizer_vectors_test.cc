// Published vocabularies against published token ids; skipped where the shared data is absent.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/file.h"
#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/gguf_test_builder.h"
#include "model/tokenizer.h"
#include "model/tokenizer_json.h"

namespace kvquant {
namespace {

using Ids = std::vector<int32_t>;

std::vector<std::string> split_at(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (size_t end; (end = text.find(separator, start)) != std::string::npos;) {
    parts.push_back(text.substr(start, end - start));
    start = end + separator.size();
  }
  parts.push_back(text.substr(start));
  return parts;
}

class TokenizerVectors : public testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("KVQUANT_SHARED_DATA");
    if (root == nullptr) GTEST_SKIP() << "KVQUANT_SHARED_DATA names no folder of reference data";
    root_ = root;
    folder_ = root_ + "/tokenizers/";
    if (!std::filesystem::exists(folder_ + "vectors")) GTEST_SKIP() << folder_ << " has no vectors";
  }

  void expect_vectors(const TokenizerData& data, const std::string& name) const {
    const Tokenizer tokenizer(data);
    const auto texts =
        split_at(read_text(folder_ + "vectors/" + name + ".inp"), "\n__ggml_vocab_test__\n");
    const auto lines = split_at(read_text(folder_ + "vectors/" + name + ".out"), "\n");
    ASSERT_EQ(texts.size(), 47u);
    ASSERT_GE(lines.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      std::istringstream line(lines[i]);
      const Ids expected{std::istream_iterator<int32_t>(line), {}};
      const Ids ids =
          tokenizer.encode(texts[i], Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
      EXPECT_EQ(ids, expected) << name << ": " << texts[i];
      EXPECT_EQ(tokenizer.decode(ids), texts[i]);
    }
  }

  std::string root_, folder_;
};

TokenizerData gpt2_data(const std::string& folder) {
  // vocab.json is the "vocab" of a tokenizer.json, merges.txt its "merges".
  std::string merges;
  for (const std::string& line : split_at(read_text(folder + "/merges.txt"), "\n")) {
    if (line.empty() || line.starts_with("#version")) continue;
    std::string escaped;
    for (const char c : line) {
      if (c == '"' || c == '\\') escaped += '\\';
      escaped += c;
    }
    merges += (merges.empty() ? "\"" : ",\"") + escaped + "\"";
  }
  return tokenizer_from_json(
      R"({"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"decoder":{"type":"ByteLevel"},)"
      R"("model":{"type":"BPE","vocab":)" +
      read_text(folder + "/vocab.json") + ",\"merges\":[" + merges + "]}}");
}

// The same vocabulary as a GGUF file has it.
TokenizerData through_gguf(const TokenizerData& data) {
  GgufBuilder builder;
  std::vector<int32_t> types(data.tokens.size(), 1);
  std::string scores;
  for (const float score : data.scores) scores.append(reinterpret_cast<const char*>(&score), 4);
  for (const int32_t id : data.special) types[id] = 3;
  const uint64_t count = data.scores.size();
  std::string array("\6\0\0\0", 4);
  array.append(reinterpret_cast<const char*>(&count), 8);
  builder.text("tokenizer.ggml.model", "llama")
      .texts("tokenizer.ggml.tokens", data.tokens)
      .raw("tokenizer.ggml.scores", static_cast<uint32_t>(GgufType::kArray), array + scores)
      .integers("tokenizer.ggml.token_type", types);
  const std::string bytes = builder.bytes();
  return tokenizer_data_from_gguf(Gguf(as_byte_span(bytes), "a.gguf"));
}

TEST_F(TokenizerVectors, Gpt2) { expect_vectors(gpt2_data(folder_ + "gpt2"), "gpt-2"); }

TEST_F(TokenizerVectors, Falcon) {
  expect_vectors(tokenizer_from_json(read_text(folder_ + "falcon/tokenizer.json")), "falcon");
}

// In this copy of the file three merges lost their no-break spaces, so that it is refused, by the
// tokenizers package as well; the other 61246 are whole.
TEST_F(TokenizerVectors, Llama2FromTokenizerJson) {
  EXPECT_THROW(load_tokenizer_folder(folder_ + "llama2"), FormatError);
  auto json = nlohmann::json::parse(read_text(folder_ + "llama2/tokenizer.json"));
  auto& merges = json["model"]["merges"];
  for (size_t i = merges.size(); i-- > 0;) {
    const auto text = merges[i].get<std::string>();
    if (std::count(text.begin(), text.end(), ' ') != 1) merges.erase(i);
  }
  const TokenizerData data = tokenizer_from_json(json.dump());
  EXPECT_TRUE(data.add_bos);
  expect_vectors(data, "llama-spm");
}

TEST_F(TokenizerVectors, Llama2FromTokenizerModel) {
  const TokenizerData data =
      tokenizer_from_model_file(read_text(folder_ + "llama2/tokenizer.model"), "", "");
  EXPECT_TRUE(data.sentencepiece.empty());
  EXPECT_EQ(data.bos, 1);
  EXPECT_EQ(data.eos, 2);
  expect_vectors(data, "llama-spm");
}

TEST_F(TokenizerVectors, Llama2RunByTheSentencepieceLibrary) {
  TokenizerData data =
      tokenizer_from_model_file(read_text(folder_ + "llama2/tokenizer.model"), "", "");
  data.sentencepiece = read_text(folder_ + "llama2/tokenizer.model");
  expect_vectors(data, "llama-spm");
}

TEST_F(TokenizerVectors, Llama2FromGguf) {
  expect_vectors(through_gguf(tokenizer_from_model_file(
                     read_text(folder_ + "llama2/tokenizer.model"), "", "")),
                 "llama-spm");
}

TEST_F(TokenizerVectors, Phi3) {
  const TokenizerData data = load_tokenizer_folder(folder_ + "phi3");
  EXPECT_FALSE(data.add_bos);
  expect_vectors(data, "phi-3");
  // From the tokenizers package 0.23.3: the tokens take the white space behind them.
  EXPECT_EQ(Tokenizer(data).encode("<|user|>\nHi <|end|>\n<|assistant|>\n"),
            (Ids{32010, 6324, 29871, 32007, 32001}));
}

TEST_F(TokenizerVectors, Llama3FromRanks) {
  expect_vectors(tokenizer_from_model_file(read_text(folder_ + "llama3/tokenizer.model"), "", ""),
                 "llama-bpe");
}

TEST_F(TokenizerVectors, TinyStories) {
  const std::string folder = root_ + "/models/tinystories656k";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no folder " << folder;
  // From the tokenizers package 0.23.3, add_special_tokens=False.
  const Tokenizer tokenizer(load_tokenizer_folder(folder));
  const auto encode = [&](const char* text) {
    return tokenizer.encode(text, Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
  };
  EXPECT_EQ(encode("Once upon a time"), (Ids{80, 147, 201, 282, 57}));
  EXPECT_EQ(encode("<|start_story|>Tim said  \u00E9\u00E9."), (Ids{1, 285, 386, 80, 0, 10}));
  EXPECT_EQ(tokenizer.encode("Once").front(), tokenizer.data().bos);
}

}  // namespace
}  // namespace kvquant
