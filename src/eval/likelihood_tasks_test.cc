#include "eval/likelihood_tasks.h"

#include <gtest/gtest.h>

#include "base/test_path.h"
#include "eval/test_tokenizer.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

JsonLine line_of(const char* text) { return {Json::parse(text), "file:1"}; }

TEST(LikelihoodReaders, AskForTheLastWord) {
  const auto text = read_lambada(line_of(R"({"text": "It was \"on\" the  roof. \n"})"));
  EXPECT_EQ(text.context, "It was \"on\" the ");
  EXPECT_EQ(text.choices, std::vector<std::string>{" roof."});
  EXPECT_THROW(read_lambada(line_of(R"({"text": "word"})")), FormatError);
}

TEST(LikelihoodReaders, TakeMarksOutOfHellaswag) {
  const auto text = read_hellaswag(line_of(
      R"({"activity_label": "Baking", "ctx_a": "A man [step] bakes.", "ctx_b": "then He",
          "endings": ["eats [title] Enjoy.", "sleeps."], "label": "1"})"));
  EXPECT_EQ(text.context, "Baking: A man bakes. Then he");
  EXPECT_EQ(text.choices, (std::vector<std::string>{" eats. Enjoy.", " sleeps."}));
  EXPECT_EQ(text.right, 1u);
  EXPECT_THROW(read_hellaswag(line_of(R"({"activity_label": "B", "ctx": "A", "endings": ["x"],
                                          "label": 1})")),
               FormatError);
}

TEST(LikelihoodReaders, KnowBothLayoutsOfArc) {
  for (const char* line :
       {R"({"question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"},
            {"text": "thus", "label": "B"}]}, "answerKey": "B"})",
        R"({"question": "Why?", "choices": {"text": ["so", "thus"], "label": ["1", "2"]},
            "answerKey": "2"})"}) {
    const auto text = read_arc(line_of(line));
    EXPECT_EQ(text.context, "Question: Why?\nAnswer:");
    EXPECT_EQ(text.choices, (std::vector<std::string>{" so", " thus"}));
    EXPECT_EQ(text.right, 1u);
  }
  for (const char* line :
       {R"({"question": "Why?", "choices": {"text": ["so"], "label": ["1"]}, "answerKey": "2"})",
        R"({"question": "Why?", "choices": ["so"], "answerKey": "2"})",
        R"({"question": {"stem": "Why?", "choices": ["so"]}, "answerKey": "2"})",
        R"({"question": {"stem": "Why?"}, "answerKey": "2"})", R"({"answerKey": "2"})"}) {
    EXPECT_THROW(read_arc(line_of(line)), FormatError) << line;
  }
}

EvalTaskOptions options_of(const std::string& task, const std::string& path) {
  return {.max_context = 2048, .data = {{task, path}}};
}

TEST(LikelihoodTasks, PutTheFirstLinesBeforeTheOthers) {
  const std::string path = test::test_path("piqa.jsonl");
  write_file_atomic(path, R"({"goal": "one", "sol1": "a", "sol2": "bé"}
{"goal": "two", "sol1": "c", "sol2": "d"}
{"goal": "three", "sol1": "e", "sol2": "f"}
)");
  write_file_atomic(path.substr(0, path.size() - 6) + "-labels.lst", "1\n0\n1\n");
  EvalTaskOptions options = options_of("piqa", path);
  options.num_fewshot = 1;
  const auto samples = make_eval_samples("piqa", test::embedded_tokenizer(), options);
  ASSERT_EQ(samples.size(), 2u);
  auto tokens = samples[1].context;
  append(tokens, samples[1].questions.at(0).tokens);
  EXPECT_EQ(test::embedded_tokenizer().decode(tokens),
            "Question: one\nAnswer: bé\n\nQuestion: three\nAnswer:");
  EXPECT_EQ(samples[1].questions[0].right_choice, 1);
  EXPECT_EQ(samples[1].questions[0].choices.at(1).num_characters, 1);
  EXPECT_EQ(samples[1].metric, EvalMetric::kChoice);
  options.num_fewshot = 0;
  options.limit = 1;
  const auto first = make_eval_samples("piqa", test::embedded_tokenizer(), options);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].questions[0].choices.at(1).num_characters, 2);  // "bé"
  options.num_fewshot = 3;
  EXPECT_THROW(make_eval_samples("piqa", test::embedded_tokenizer(), options), FormatError);
}

TEST(LikelihoodTasks, NameTheBadLine) {
  const std::string path = test::test_path("lambada.jsonl");
  const auto error_of = [&](const std::string& text) -> std::string {
    write_file_atomic(path, text);
    try {
      make_eval_samples("lambada", test::embedded_tokenizer(), options_of("lambada", path));
    } catch (const FormatError& error) {
      return error.what();
    }
    return "no error";
  };
  const std::string good = "{\"text\": \"It is so.\"}\n";
  EXPECT_EQ(error_of(good), "no error");
  EXPECT_EQ(error_of(good + "{\"text\": 3}\n"), path + ":2: \"text\" is missing or not a text");
  EXPECT_EQ(error_of(good + "\n[1]\n").find(path + ":3: "), 0u);
  EXPECT_EQ(error_of(good + "{\"text\": \"a").find(path + ":2: "), 0u);
  EXPECT_EQ(error_of("\n"), path + ": there is no line in it");
  std::string many = "{\"text\": \"";
  for (int i = 0; i < 2100; ++i) many += "so ";
  EXPECT_EQ(error_of(good + many + "it\"}").find(path + ":2: 21"), 0u);
}

}  // namespace
}  // namespace kvquant
