// What `kvquant bench` prints, read as a program would.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "program.h"

namespace kvquant {
namespace {

using Json = nlohmann::json;
using test::Outcome;

constexpr const char* kRun =
    "bench -m embedded -t 1 -p 8 -n 2 -pg 8,2 -d 0,70 -r 2 --kv fp16 --kv k=nuq4-1%,v=nuq3-1% ";
constexpr size_t kNumRows = 3 * 2 * 2;
constexpr const char* kFields[] = {"model",       "spec",
                                   "mode",        "test",
                                   "n_prompt",    "n_gen",
                                   "n_depth",     "batch",
                                   "threads",     "tokens_per_s_mean",
                                   "samples_s",   "tokens_per_s_sd",
                                   "commit",      "ratio_to_first_spec",
                                   "cache_bytes", "peak_cache_bytes",
                                   "precision",   "peak_rss_bytes"};

class Bench : public test::ProgramTest {};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> csv_cells(const std::string& line) {
  std::vector<std::string> cells(1);
  bool is_quoted = false;
  for (const char c : line) {
    if (c == '"') {
      is_quoted = !is_quoted;
    } else if (c == ',' && !is_quoted) {
      cells.emplace_back();
    } else {
      cells.back() += c;
    }
  }
  return cells;
}

void check_row(const Json& row, size_t index) {
  EXPECT_EQ(row.at("spec"), index % 2 == 0 ? "fp16" : "k=nuq4-1%,v=nuq3-1%");
  EXPECT_EQ(row.at("n_depth"), index < kNumRows / 2 ? 0 : 70);
  EXPECT_EQ(row.at("samples_s").size(), 2u);
  EXPECT_GT(row.at("tokens_per_s_mean"), 0.0);
  EXPECT_GT(row.at("ratio_to_first_spec"), 0.0);
  EXPECT_GE(row.at("peak_cache_bytes"), row.at("cache_bytes"));
}

TEST_F(Bench, JsonlIsARowPerLineThatStandsAlone) {
  const Outcome outcome = run(std::string(kRun) + "-o jsonl -q");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const auto lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), kNumRows);
  for (size_t i = 0; i < lines.size(); ++i) {
    const Json row = Json::parse(lines[i]);
    for (const char* field : kFields) EXPECT_TRUE(row.contains(field)) << field;
    check_row(row, i);
  }
  EXPECT_EQ(Json::parse(lines[10]).at("test"), "pp8+tg2 @ d70");
}

TEST_F(Bench, CsvHasTheSameRows) {
  const Outcome outcome = run(std::string(kRun) + "-o csv");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), kNumRows + 1);
  const auto names = csv_cells(lines[0]);
  for (const char* field : kFields) {
    EXPECT_EQ(std::count(names.begin(), names.end(), field), 1) << field;
  }
  for (size_t i = 1; i < lines.size(); ++i) {
    const auto cells = csv_cells(lines[i]);
    ASSERT_EQ(cells.size(), names.size()) << lines[i];
    Json row;
    for (size_t c = 0; c < cells.size(); ++c) {
      const Json number = Json::parse(cells[c], nullptr, /*allow_exceptions=*/false);
      row[names[c]] = number.is_number() ? number : Json(cells[c]);
    }
    std::string samples = cells[static_cast<size_t>(
        std::find(names.begin(), names.end(), "samples_s") - names.begin())];
    std::replace(samples.begin(), samples.end(), ';', ',');
    row["samples_s"] = Json::parse("[" + samples + "]");
    check_row(row, i - 1);
  }
}

TEST_F(Bench, JsonIsTheDocumentWhereverItGoes) {
  const Outcome printed = run(std::string(kRun) + "-o json --json " + path("x.json"));
  ASSERT_EQ(printed.code, 0) << printed.err;
  const Json document = Json::parse(printed.out);
  EXPECT_EQ(document, Json::parse(read_text(path("x.json"))));
  EXPECT_EQ(document.at("command"), "bench");
  EXPECT_EQ(document.at("config").at("repetitions"), 2);
  ASSERT_EQ(document.at("results").size(), kNumRows);
  for (size_t i = 0; i < kNumRows; ++i) check_row(document["results"][i], i);
}

TEST_F(Bench, TheTableHasARatioAndAPeak) {
  const Outcome outcome = run("bench -m embedded -p 8 -n 2 -d 64 -b 1,3 -r 1 -t 1,2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 2u + 2 * 2 * 2);
  for (const char* column : {"threads", "x first spec", "cache peak", "tokens/s"}) {
    EXPECT_NE(lines[0].find(column), std::string::npos) << column;
  }
  EXPECT_NE(lines[2].find("pp8 @ d64 "), std::string::npos);
  EXPECT_NE(lines[5].find("tg2 @ d64 x 3"), std::string::npos);
  EXPECT_NE(lines[5].find("1.00"), std::string::npos);
}

TEST_F(Bench, WrongInputIsNamed) {
  expect_refused("bench -m embedded -p -1", "'-1' is not a whole number of at least 0");
  expect_refused("bench -m embedded -b 0", "'0' is not a whole number of at least 1");
  expect_refused("bench -m embedded -r 0", "at least 1");
  expect_refused("bench -m embedded -t 0", "1024");
  expect_refused("bench -m embedded -t 1,x", "x");
  expect_refused("bench -m embedded -o yaml", "yaml");
  expect_refused("bench -m embedded -b 70000", "70000");
  expect_refused("bench -m embedded -d 2048", "context of 2048");
  expect_refused("bench -m embedded -p 0 -n 0 -pg 2000,49", "context of 2048");
  for (const char* pair : {"8", "8,", ",8", "8,2,1", "0,2", "8,0", "8,-2", "a,b", "''"}) {
    expect_refused("bench -m embedded --pg " + std::string(pair), "--pg");
  }
  expect_refused("bench -m embedded -p 8 -o csv --json -", "standard output");
  expect_refused("bench -m embedded --baseline -t 1,2", "one number of threads");
  expect_refused("bench -m embedded --baseline -p 0 -n 0", "nothing to time");
  expect_refused("bench -m embedded --baseline --kv nuq9", "nuq9");
  expect_refused("bench -m embedded --baseline --gguf /nonexistent", "not a file");
  expect_refused("bench -m embedded --gguf x", "needs --baseline");
}

TEST_F(Bench, PeaksStandBesideTheResults) {
  const Outcome outcome = run("bench -m embedded -t 1 -p 8 -n 0 -r 1 --peaks --json -");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json peaks = Json::parse(outcome.out).at("config").at("peaks");
  EXPECT_GT(peaks.at("read_gb_per_s"), 0.0);
  EXPECT_GT(peaks.at("f32_gemm_gflop_per_s"), 0.0);
  EXPECT_NE(outcome.err.find("1 threads, measured peaks: read "), std::string::npos);
}

}  // namespace
}  // namespace kvquant
