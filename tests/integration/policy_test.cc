// --policy as a user meets it.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

using test::Outcome;

class Policy : public test::ProgramTest {};

TEST_F(Policy, ItsSpecIsUsedAndSaid) {
  const Outcome outcome =
      run("generate -m embedded -p Hello -n 2 --temp 0 --json - --policy high_compression");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::string spec = "k=nuq3-1%,v=had+nuq3,sink=4,recent=64";
  EXPECT_NE(outcome.err.find("policy high_compression: " + spec), std::string::npos) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out).at("results").at(0).at("spec"), spec);
}

TEST_F(Policy, AutoCompressesHarderWhereMemoryIsShort) {
  const std::string command =
      "perplexity -m embedded -c 512 --windows 1 --json - --policy auto --memory ";
  const auto spec_of = [&](const std::string& more) {
    const Outcome outcome = run(command + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("512 tokens take"), std::string::npos) << outcome.err;
    return nlohmann::json::parse(outcome.out).at("results").at(0).at("spec").get<std::string>();
  };
  EXPECT_NE(spec_of("8GiB").find("nuq4"), std::string::npos);
  const auto model =
      nlohmann::json::parse(run("info -m embedded -q --json - --kv nuq4 -c 512").out);
  const auto weights = model.at("model").at("weight_bytes").get<int64_t>();
  const auto cache = model.at("results").at(0).at("cache_bytes").get<int64_t>();
  EXPECT_NE(spec_of(std::to_string(weights + cache * 7 / 8)).find("nuq2"), std::string::npos);
  expect_refused(command + std::to_string(weights + cache * 7 / 8) + " --ppl-budget 0.01 -q",
                 "none fits");
  expect_refused(command + "1MiB -q", "give more memory");
}

TEST_F(Policy, BenchTakesOneToo) {
  const Outcome outcome =
      run("bench -m embedded -p 32 -n 4 -r 1 -o jsonl --policy auto --memory 1GiB");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("policy default"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.out.find("had+nuq4"), std::string::npos) << outcome.out;
}

TEST_F(Policy, EvalTakesOneForItsLongestContext) {
  const std::string command =
      "eval -m embedded --tasks passkey --context-lengths 200,250 --limit 1 --batch-size 2 --json "
      "- ";
  const Outcome named = run(command + "--policy memory_emergency");
  EXPECT_EQ(named.code, 0) << named.err;
  EXPECT_NE(named.err.find("policy memory_emergency"), std::string::npos) << named.err;
  const auto results = nlohmann::json::parse(named.out).at("results");
  ASSERT_EQ(results.size(), 2u);  // fp16 is always there
  EXPECT_EQ(results.at(1).at("spec"), "k=nuq2-1%,v=lnns+nuq3,sink=4,recent=16");
  const Outcome fitted = run(command + "--policy auto --memory 1GiB");
  EXPECT_EQ(fitted.code, 0) << fitted.err;
  EXPECT_NE(fitted.err.find("2 x 250 tokens take"), std::string::npos) << fitted.err;
  expect_refused("eval -m embedded -q --policy default --kv nuq4", "excludes --kv");
  expect_refused("eval -m embedded -q --policy auto", "--memory");
}

TEST_F(Policy, WhatDoesNotFitTogetherIsRefused) {
  const std::string generate = "generate -m embedded -p Hello -q ";
  expect_refused(generate + "--policy gentle", "memory_emergency, auto");
  expect_refused(generate + "--policy default --kv nuq4", "excludes --kv");
  expect_refused(generate + "--policy auto", "--memory");
  expect_refused(generate + "--policy auto --memory lots", "lots");
  expect_refused(generate + "--policy default --memory 1GiB", "--policy auto");
  expect_refused(generate + "--memory 1GiB", "--policy auto");
  expect_refused(generate + "--policy auto --memory 1GiB --ppl-budget -1", "--ppl-budget");
  expect_refused("chat -m embedded --policy gentle", "default");
}

}  // namespace
}  // namespace kvquant
