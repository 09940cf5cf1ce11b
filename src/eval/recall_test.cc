#include "eval/recall.h"

#include <gtest/gtest.h>

#include "eval/demo.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr const char* kEmbedded = KVQUANT_SOURCE_DIR "/assets/ref5m";

std::string story(int num_sentences) {
  std::string text = "Once upon a time there was a little girl named Lily.";
  for (int i = 1; i < num_sentences; ++i) text += " She went to the park to play with her dog.";
  return text;
}

const std::vector<Fact> kFacts = {{"What is the name of the girl?", "Lily", "Her name was"},
                                  {"Where did she go?", "park", "She went to the"},
                                  {"What animal did she have?", "dog", ""}};

TEST(Recall, FactsComeFromAListOrAnObject) {
  const auto list = facts_from_json(R"([{"question": "q", "answer": "a"}])", "x.json");
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].cue, "");
  const auto object =
      facts_from_json(R"({"facts": [{"question": "q", "answer": "a", "cue": "c"}]})", "x.json");
  ASSERT_EQ(object.size(), 1u);
  EXPECT_EQ(object[0].cue, "c");
  for (const char* bad : {"", "{}", "[{}]", "[1]", R"([{"question": 1, "answer": "a"}])"}) {
    EXPECT_THROW(facts_from_json(bad, "x.json"), FormatError) << bad;
  }
}

TEST(Recall, EveryQuestionIsAskedBehindTheSamePrompt) {
  Model model = Model::load(kEmbedded);
  const SessionOptions options{.spec = parse_spec("fp16")};
  const auto all = evaluate_recall(model, options, story(20), kFacts);
  ASSERT_EQ(all.answers.size(), kFacts.size());
  EXPECT_GT(all.num_prompt_tokens, 150);
  EXPECT_GT(all.num_decoded_tokens, 0);
  EXPECT_EQ(all.compressed_tokens, 0);
  for (size_t i = 0; i < kFacts.size(); ++i) {  // alone as among others: nothing leaks
    const auto alone = evaluate_recall(model, options, story(20), {kFacts[i]});
    EXPECT_EQ(alone.answers[0], all.answers[i]) << i;
    EXPECT_EQ(alone.num_correct,
              all.answers[i].find(kFacts[i].answer) != std::string::npos ? 1 : 0);
  }
}

// Without a window the last tokens of the prompt are encoded while a question is answered.
TEST(Recall, GoesOnWhereTheCacheCannotForget) {
  Model model = Model::load(kEmbedded);
  const SessionOptions options{.spec = parse_spec("nuq4-1%,recent=0"), .ubatch = 128};
  const auto out = evaluate_recall(model, options, story(20), kFacts);
  EXPECT_EQ(out.answers.size(), kFacts.size());
  EXPECT_GT(out.compressed_tokens, 0);
}

TEST(Demo, TablesEverySpecAndAsksOnlyWhatTheTextTells) {
  Model model = Model::load(kEmbedded);
  auto facts = kFacts;
  facts.push_back({"Who wrote it?", "Shakespeare", ""});
  const DemoOptions options{.specs = {parse_spec("fp16"), parse_spec("nuq2")},
                            .window = 128,
                            .max_windows = 1,
                            .ubatch = 64};
  const auto out =
      run_demo(model, story(30), facts, options, [](const std::string&) { return Progress(); });
  ASSERT_EQ(out.rows.size(), 2u);
  EXPECT_EQ(out.facts.size(), kFacts.size());
  EXPECT_LT(out.rows[1].quality.true_bits, 5);
  EXPECT_GT(out.rows[1].quality.kl_mean, 0);
  EXPECT_LT(out.rows[1].recall.cache_bytes, out.rows[0].recall.cache_bytes);

  DemoOptions bad = options;
  for (const int64_t context : {100, 100000}) {
    bad.context = context;
    EXPECT_THROW(run_demo(model, story(30), facts, bad, {}), std::invalid_argument) << context;
  }
  bad.context = 228;  // 100 tokens of the text
  bad.specs = {parse_spec("fp16")};
  const auto cut =
      run_demo(model, story(30), facts, bad, [](const std::string&) { return Progress(); });
  EXPECT_EQ(cut.prompt_tokens, 100);
}

}  // namespace
}  // namespace kvquant
