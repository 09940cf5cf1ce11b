// The sample text and its facts (assets/) are what the demo asks for: every sentence must stand in
// the text once, every answer nowhere else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>

#include "base/file.h"

namespace kvquant {
namespace {

std::string asset(const std::string& name) {
  return read_text(KVQUANT_SOURCE_DIR "/assets/" + name);
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(SampleText, has_at_least_3000_words) {
  std::istringstream words(asset("sample.txt"));
  std::string word;
  int num_words = 0;
  while (words >> word) ++num_words;
  EXPECT_GE(num_words, 3000);
}

TEST(SampleText, every_fact_stands_once_in_the_text) {
  const std::string text = asset("sample.txt");
  const auto facts = nlohmann::json::parse(asset("sample_facts.json")).at("facts");
  EXPECT_GE(facts.size(), 8u);
  for (const auto& fact : facts) {
    const std::string sentence = fact.at("sentence"), answer = fact.at("answer");
    EXPECT_EQ(count(text, sentence), 1) << sentence;
    EXPECT_EQ(count(lower(text), lower(answer)), 1) << answer;
    EXPECT_EQ(count(sentence, answer), 1) << sentence;
    EXPECT_EQ(sentence.find(std::string(fact.at("cue")) + " " + answer), 0u) << sentence;
    EXPECT_EQ(count(fact.at("question"), answer), 0) << answer;
  }
}

}  // namespace
}  // namespace kvquant
