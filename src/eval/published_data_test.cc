// The loaders on whole published files, where a folder has them (KVQUANT_SHARED_DATA).
#include <gtest/gtest.h>

#include <cstdlib>

#include "eval/eval_data.h"
#include "eval/longbench.h"
#include "eval/test_tokenizer.h"

namespace kvquant {
namespace {

class PublishedData : public testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("KVQUANT_SHARED_DATA");
    if (root == nullptr) GTEST_SKIP() << "KVQUANT_SHARED_DATA names no folder of reference data";
    root_ = std::string(root) + "/eval/";
  }

  std::vector<EvalSample> samples_of(const std::string& task, const std::string& data,
                                     EvalTaskOptions options) const {
    options.data = find_task_files({task}, {root_ + data}).files;
    return make_eval_samples(task, test::embedded_tokenizer(), options);
  }

  std::string root_;
};

TEST_F(PublishedData, LambadaHasAllItsPassages) {
  const auto samples = samples_of("lambada", "lambada", {.max_context = 2048});
  EXPECT_EQ(samples.size(), 5153u);
  EXPECT_EQ(samples[0].questions.at(0).references.at(0), " signs");
}

TEST_F(PublishedData, LEvalAsksAllItsQuestions) {
  const auto prompts = read_prompts(KVQUANT_SOURCE_DIR "/assets/eval_prompts.json");
  for (const std::string& task : leval_tasks()) {
    const auto samples = samples_of(task, "leval", {.max_context = 4096, .prompts = prompts});
    EXPECT_GE(samples.size(), 15u) << task;
    for (const EvalSample& sample : samples) {
      EXPECT_FALSE(sample.questions.empty());
      EXPECT_LE(num_tokens(sample), 4096);
      EXPECT_EQ(sample.metric, task == "leval_quality"           ? EvalMetric::kOption
                               : task == "leval_topic_retrieval" ? EvalMetric::kContained
                                                                 : EvalMetric::kQaF1);
    }
  }
}

TEST_F(PublishedData, SquadAnswersStandInTheContext) {
  EvalTaskOptions options{.max_context = 4096, .context_lengths = {4096}, .num_samples = 40};
  const auto samples = samples_of("qa_1", "squad/xquad.en.json", options);
  EXPECT_EQ(samples.size(), 40u);
  for (const EvalSample& sample : samples) {
    const std::string text = test::embedded_tokenizer().decode(sample.context);
    for (const std::string& answer : sample.questions.at(0).references) {
      EXPECT_NE(text.find(answer), std::string::npos) << answer;
    }
  }
}

TEST_F(PublishedData, LongBenchHasAPromptForEachTask) {
  const auto prompts = read_prompts(root_ + "longbench/dataset2prompt.json");
  for (const std::string& task : longbench_tasks()) EXPECT_TRUE(prompts.contains(task)) << task;
}

}  // namespace
}  // namespace kvquant
