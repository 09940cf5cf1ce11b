#include "eval/sample_log.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/test_path.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

EvalSample sample_of(int32_t token) {
  return {.task = "t", .seed = 7, .context = {token}, .questions = {{{1}, {"x"}}}};
}

std::string fresh_path() {
  const std::string path = test::test_path("samples.jsonl");
  std::filesystem::remove(path);
  return path;
}

TEST(SampleLog, FindsWhatWasAdded) {
  const std::string path = fresh_path();
  {
    SampleLog log(path);
    EXPECT_EQ(log.find("run", "fp16", sample_of(1)), nullptr);
    log.add("run", "fp16", sample_of(1), {{"an \"answer\"\n\xff"}, {0.25}, 128});
    log.add("run", "fp16", sample_of(2), {{"another"}, {1}, 0});
    ASSERT_NE(log.find("run", "fp16", sample_of(1)), nullptr);
  }
  const SampleLog log(path);
  EXPECT_EQ(log.num_read(), 2);
  const SampleResult* found = log.find("run", "fp16", sample_of(1));
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->scores, std::vector<double>{0.25});
  EXPECT_EQ(found->compressed_tokens, 128);
  EXPECT_EQ(found->answers[0].substr(0, 12), "an \"answer\"\n");
  EXPECT_EQ(log.find("other", "fp16", sample_of(1)), nullptr);
  EXPECT_EQ(log.find("run", "nuq4", sample_of(1)), nullptr);
  EXPECT_EQ(log.find("run", "fp16", sample_of(3)), nullptr);
  EvalSample other_seed = sample_of(1);
  other_seed.seed = 8;
  EXPECT_EQ(log.find("run", "fp16", other_seed), nullptr);
}

TEST(SampleLog, KeepsWhatLikelihoodsSay) {
  const std::string path = fresh_path();
  EvalSample sample = sample_of(1);
  sample.metric = EvalMetric::kChoice;
  const SampleResult result{{"1"}, {0}, 3, {{"acc_norm", {1}}, {"nll", {0.1 + 0.2}}}};
  SampleLog(path).add("run", "fp16", sample, result);
  const SampleLog log(path);
  ASSERT_NE(log.find("run", "fp16", sample), nullptr);
  EXPECT_EQ(log.find("run", "fp16", sample)->extra, result.extra);
  for (const SampleResult& other :
       {SampleResult{{"1"}, {0}, 3, {{"nll", {1}}}}, SampleResult{{"1"}, {0}, 3, {}},
        SampleResult{{"1"}, {0}, 3, {{"acc_norm", {}}, {"nll", {1}}}}}) {
    SampleLog wrong;
    wrong.add("run", "fp16", sample, other);
    EXPECT_EQ(wrong.find("run", "fp16", sample), nullptr);
  }
}

TEST(SampleLog, DropsAnUnfinishedLastLine) {
  const std::string path = fresh_path();
  for (int32_t i = 0; i < 2; ++i) SampleLog(path).add("run", "fp16", sample_of(i), {{"a"}, {1}, 0});
  const std::string whole = read_text(path);
  const size_t first = whole.find('\n') + 1;
  for (const size_t size : {whole.size() - 1, first + 1, first, first - 1, size_t{1}, size_t{0}}) {
    write_file_atomic(path, whole.substr(0, size));
    SampleLog log(path);
    EXPECT_EQ(log.num_read(), size >= first ? 1 : 0) << size;
    EXPECT_EQ(log.find("run", "fp16", sample_of(0)) != nullptr, size >= first) << size;
    EXPECT_EQ(log.find("run", "fp16", sample_of(1)), nullptr) << size;
    log.add("run", "fp16", sample_of(1), {{"a"}, {1}, 0});
    EXPECT_NE(SampleLog(path).find("run", "fp16", sample_of(1)), nullptr) << size;
  }
}

TEST(SampleLog, NamesTheLineThatIsNoResult) {
  const std::string path = fresh_path();
  SampleLog(path).add("run", "fp16", sample_of(0), {{"a"}, {1}, 0});
  const std::string good = read_text(path);
  for (const std::string bad :
       {"", "{}", "[]", "{\"answers\":[1]}",
        R"({"run":"r","task":"t","spec":"s","seed":1,"sample":"x","answers":["a"],"scores":[2],)"
        R"("compressed_tokens":0})"}) {
    write_file_atomic(path, good + bad + "\n" + good);
    try {
      const SampleLog log(path);
      ADD_FAILURE() << bad;
    } catch (const FormatError& error) {
      EXPECT_EQ(std::string(error.what()).find(path + ":2: "), 0u) << error.what();
    }
  }
}

TEST(SampleLog, SaysWhereItCannotWrite) {
  EXPECT_THROW(SampleLog("/nonexistent/folder/samples.jsonl"), IoError);
}

}  // namespace
}  // namespace kvquant
