// What `kvquant eval` prints and writes, read as a user and a program would.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "eval/eval_tasks.h"
#include "eval/evaluate.h"
#include "kvquant/error.h"
#include "program.h"

namespace kvquant {
namespace {

using Json = nlohmann::json;

constexpr const char* kRun =
    "eval -m embedded -t 2 -ub 64 --tasks passkey --context-lengths 250 --limit 2 --kv nuq3-1% ";

class Eval : public test::ProgramTest {};

TEST_F(Eval, WritesResultsAndGoesOnFromItsSamples) {
  const std::string arguments = kRun + ("--output-path " + path("results"));
  const auto first = run(arguments);
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.out.find("| passkey |"), 0u) << first.out;
  EXPECT_NE(first.out.find("Against fp16:"), std::string::npos);
  const Json document = Json::parse(read_text(path("results/results.json")));
  ASSERT_EQ(document.at("results").size(), 2u);
  const Json& row = document["results"][1];
  EXPECT_EQ(row.at("spec"), "nuq3-1%");
  EXPECT_EQ(row.at("task"), "passkey");
  EXPECT_EQ(row.at("cells").at(0).at("context_length"), 250);
  EXPECT_EQ(row.at("count"), 2);
  EXPECT_GT(row.at("compressed_tokens"), 0);
  EXPECT_TRUE(row.at("versus_fp16").contains("verdict"));
  EXPECT_EQ(first.out.find(read_text(path("results/results.md"))), 0u);

  const std::string samples = read_text(path("results/samples.jsonl"));
  const auto again = run(arguments);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("has 4 results"), std::string::npos) << again.err;
  EXPECT_EQ(read_text(path("results/samples.jsonl")), samples);
  EXPECT_EQ(Json::parse(read_text(path("results/results.json"))), document);
}

TEST_F(Eval, RefusesInOneLine) {
  expect_refused("eval -m embedded --tasks rulers", "there is no task \"rulers\": passkey, needle");
  expect_refused("eval -m embedded --context-lengths 64", "a context of 64 tokens is too small");
  expect_refused("eval -m embedded --context-lengths 4096", "is not in [1, 2048], the model's");
  expect_refused("eval -m embedded --seeds 1,x", "neither a number of runs nor a list of seeds");
  expect_refused("eval -m embedded --tasks needle --haystack nowhere.txt", "nowhere.txt");
  for (const char* wrong : {"-m nowhere", "-m embedded --context-lengths 64",
                            "-m embedded --kv nuqx", "-m embedded --kv v=pca8+int8"}) {
    const auto refused = run(std::string("eval ") + wrong + " --output-path " + path("none"));
    EXPECT_EQ(refused.code, 2) << wrong;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
    EXPECT_FALSE(std::filesystem::exists(path("none"))) << wrong;  // nothing begun
  }
  write_file_atomic(path("x.samples.jsonl"), "{}\n");
  expect_refused("eval -m embedded --json " + path("x.json"), "x.samples.jsonl:1: ");
}

TEST_F(Eval, AsksForLikelihoodsThroughAStrictCache) {
  write_file_atomic(path("piqa.jsonl"),
                    R"({"goal": "To sit", "sol1": "use a chair", "sol2": "fly", "label": 0}
{"goal": "To eat", "sol1": "use a spoon", "sol2": "use a car", "label": 0}
{"goal": "To run", "sol1": "sleep", "sol2": "go to the park", "label": 1}
)");
  const auto out =
      run("eval -m embedded -t 2 --tasks passkey,lm --context-lengths 200 --limit 3 "
          "--num_fewshot 1 --kv nuq2 --data " +
          path("") + " --json " + path("x.json"));
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NE(out.err.find("left out, for there is no data: lambada, hellaswag, arc_easy"),
            std::string::npos)
      << out.err;
  const Json results = Json::parse(read_text(path("x.json"))).at("results");
  ASSERT_EQ(results.size(), 4u);
  EXPECT_EQ(results[2].at("mode"), "as-served");
  const Json& row = results[3];
  EXPECT_EQ(row.at("task"), "piqa");
  EXPECT_EQ(row.at("mode"), "strict");
  EXPECT_EQ(row.at("count"), 2);
  for (const char* key : {"acc,none", "acc_stderr,none", "acc_norm,none", "nll,none"}) {
    EXPECT_TRUE(row.contains(key)) << key;
  }
  EXPECT_GT(row.at("compressed_tokens"), 0);
  EXPECT_NE(out.out.find("| acc_norm |"), std::string::npos) << out.out;
}

TEST_F(Eval, NamesBadLinesOfDataAndKeepsWhatIsThere) {
  const std::string samples = path("results/samples.jsonl");
  std::filesystem::create_directories(path("results"));
  write_file_atomic(samples, "");
  write_file_atomic(path("x.jsonl"), "{\"text\": \"one two\"}\n{\"text\"\n");
  const std::string to = " --output-path " + path("results");
  expect_refused("eval -m embedded --tasks lambada --data " + path("x.jsonl") + to, "x.jsonl:2: ");
  expect_refused("eval -m embedded --tasks lambada --data " + path("y.jsonl") + to, "y.jsonl");
  expect_refused("eval -m embedded --tasks lambada" + to, "give --data lambada=FILE");
  expect_refused("eval -m embedded --tasks musique --templates " + path("x.jsonl") + " --data " +
                     path("x.jsonl") + to,
                 "x.jsonl: not JSON");
  EXPECT_TRUE(std::filesystem::exists(samples));
}

// The wording of these tasks is what a model of 135 M parameters is capable of.
TEST(EvalTasksOnSmolLM2, AreMasteredInFp16) {
  std::string found;
  try {
    found = find_model("smollm2");
  } catch (const IoError&) {
    GTEST_SKIP() << "SmolLM2 is not here: scripts/get-model smollm2";
  }
  Model model = Model::load(found);
  std::vector<EvalSample> samples;
  for (const char* task : {"recall_table", "recall_facts"}) {
    auto more = make_eval_samples(task, model.tokenizer(),
                                  {.max_context = 8192, .context_lengths = {400}, .limit = 1});
    std::move(more.begin(), more.end(), std::back_inserter(samples));
  }
  SampleLog log;
  const auto results =
      evaluate_samples(model, samples, {.specs = {parse_spec("nuq4-1%")}, .program = "test"}, log);
  for (const SpecResults& spec : results) {
    for (const TaskSummary& summary : summarise(samples, spec, results[0])) {
      EXPECT_GE(summary.scores.mean, 0.7) << spec.spec.text << " " << summary.task;
    }
  }
}

}  // namespace
}  // namespace kvquant
