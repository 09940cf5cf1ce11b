// What `kvquant eval` prints and writes, read as a user and a program would.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

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

}  // namespace
}  // namespace kvquant
