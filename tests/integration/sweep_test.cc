// `kvquant sweep` as a user runs it: started, killed, started again.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::Outcome;

constexpr const char* kFew =
    " -m embedded -t 1 --warmup 1 --min-repetitions 1 --max-repetitions 2 --powercap /nonexistent ";

class Sweep : public test::ProgramTest {
 protected:
  std::string sweep(const std::string& rest) const {
    return "sweep" + std::string(kFew) + "-o " + path("results") + " " + rest;
  }
  std::string grid(const std::string& text) const {
    write_file_atomic(path("grid.json"), text);
    return "--grid " + path("grid.json") + " ";
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path("results"))) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string file_of(const std::string& name) const {
    for (const auto& file : files()) {
      if (file.rfind(name + "-", 0) == 0) return path("results/" + file);
    }
    return "";
  }
  Json result_of(const std::string& name) const {
    return Json::parse(read_text(file_of(name))).at("results")[0];
  }
};

constexpr const char* kGrid =
    R"({"prompt": [16], "batch": [1, 2], "kv": ["fp16", "nuq4"], "gen": 2})";

TEST_F(Sweep, WritesAFilePerConfigurationAndAnIndex) {
  const Outcome outcome = run(sweep(grid(kGrid) + "--json " + path("all.json")));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(files().size(), 5u);
  EXPECT_NE(outcome.out.find("| nuq4"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("energy: not measured (rapl: no intel-rapl zones"), std::string::npos);
  const Json document = Json::parse(read_text(file_of("len16_batch2_gen2_nuq4")));
  EXPECT_EQ(document.at("schema"), 1);
  EXPECT_EQ(document.at("config").at("seed"), 42);
  for (const char* key : {"cpu", "compiler", "commit", "version", "onednn"}) {
    EXPECT_TRUE(document.at("machine").contains(key)) << key;
  }
  EXPECT_EQ(document.at("results")[0].at("status"), "ok");
  EXPECT_TRUE(document.at("results")[0].at("decode_joules").is_null());
  EXPECT_EQ(Json::parse(read_text(path("all.json"))).at("results").size(), 4u);
}

TEST_F(Sweep, SkipsWhatIsFinishedAndNeverTouchesIt) {
  ASSERT_EQ(run(sweep("--config len16_batch1_gen2_fp16")).code, 0);
  const std::string file = file_of("len16_batch1_gen2_fp16");
  const auto written = fs::last_write_time(file);
  const Outcome again = run(sweep(grid(kGrid)));
  EXPECT_EQ(again.code, 0);
  EXPECT_NE(again.err.find("1 of 4 configurations have results"), std::string::npos) << again.err;
  EXPECT_EQ(fs::last_write_time(file), written);
  EXPECT_NE(run(sweep(grid(kGrid) + "--list")).out.find("finished len16_batch1_gen2_fp16"),
            std::string::npos);
  // Other repetitions are another configuration.
  ASSERT_EQ(run(sweep("--config len16_batch1_gen2_fp16 --seed 7")).code, 0);
  EXPECT_EQ(files().size(), 6u);
}

TEST_F(Sweep, OutOfMemoryIsAResultAndTheSweepGoesOn) {
  const Outcome outcome =
      run(sweep("--memory-budget 3MiB " + grid(R"({"prompt": [256], "batch": [1, 64], "gen": 2,
                                             "kv": ["fp16", "nuq3-1%"]})")));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(result_of("len256_batch64_gen2_fp16").at("status"), "out_of_memory");
  EXPECT_EQ(result_of("len256_batch1_gen2_nuq3-1%").at("status"), "ok");
  const int64_t fp16 = result_of("len256_batchmax_gen2_fp16").at("batch");
  const int64_t nuq3 = result_of("len256_batchmax_gen2_nuq3-1%").at("batch");
  EXPECT_GT(fp16, 0);
  EXPECT_GT(nuq3, fp16);
}

TEST_F(Sweep, AProcessWithoutMemoryIsAResultToo) {
  const std::string limited = "sh -c 'ulimit -v 1500000; exec " + std::string(KVQUANT_PROGRAM) +
                              " " + sweep("--config len16_batch60000_gen2_fp16") +
                              "' >/dev/null 2>&1";
  EXPECT_EQ(std::system(limited.c_str()), 0);
  const Json result = result_of("len16_batch60000_gen2_fp16");
  EXPECT_EQ(result.at("status"), "out_of_memory");
  EXPECT_NE(result.at("reason").get<std::string>().find("memory"), std::string::npos);
}

TEST_F(Sweep, AProcessThatFailsIsRecordedAndTriedAgain) {
  // Low-rank values need a calibration, which is missing: refused in the process.
  const std::string command = sweep(grid(R"({"prompt": [16], "batch": [1], "gen": 2,
                                             "kv": ["v=pca32", "fp16"]})"));
  const Outcome outcome = run(command);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find("failed: ended with exit code 2: "), std::string::npos) << outcome.err;
  EXPECT_EQ(result_of("len16_batch1_gen2_fp16").at("status"), "ok");
  EXPECT_NE(file_of("len16_batch1_gen2_v=pca32").find(".failed.json"), std::string::npos);
  EXPECT_NE(run(command).err.find("1 of 2 configurations have results"), std::string::npos);
}

TEST_F(Sweep, BadInputIsRefusedBeforeAnythingIsMeasured) {
  expect_refused(sweep("--config len8_fp16"), "expected a prompt, a batch and a spec");
  expect_refused(sweep("--config len8_batch1_nuq7"), "len8_batch1_nuq7");
  expect_refused(sweep(""), "sweep needs --grid FILE, --config NAME or --quick");
  expect_refused(sweep("--config len8_batchmax_fp16"), "needs --memory-budget");
  expect_refused(sweep("--quick --memory-budget 0 --target-error nan"), "nan");
  expect_refused(sweep("--quick --region XX"), "XX");
  expect_refused("sweep -m /nonexistent --quick -o " + path("results"), "/nonexistent");
  expect_refused(sweep("--quick --calib /nonexistent"), "/nonexistent");
  expect_refused(sweep("--config len5000_batch1_fp16 --quiet"), "no configuration is left");
  expect_refused(sweep("--grid /nonexistent"), "/nonexistent");
  expect_refused(sweep("--grid " + path("")), "not a regular file");
  EXPECT_FALSE(fs::exists(path("results"))) << "made before the refusal";
}

TEST_F(Sweep, AMalformedGridIsRefusedWithThePlace) {
  const std::pair<const char*, const char*> grids[] = {
      {R"({"prompt": [0], "batch": [1], "kv": ["fp16"]})", "prompt[0] is 0"},
      {R"({"prompt": [8, "9"], "batch": [1], "kv": ["fp16"]})", "prompt[1] is \"9\""},
      {R"({"prompt": 8, "batch": [1, 2.5], "kv": ["fp16"]})", "batch[1] is 2.5"},
      {R"({"prompt": [8], "batch": [], "kv": ["fp16"]})", "batch is an empty list"},
      {R"({"prompt": [8], "batch": [1], "kv": ["fp16", "nuq7"]})", "kv[1]: "},
      {R"({"prompt": [8], "batch": [1], "kv": [["fp16"]]})", "kv[0] is [\"fp16\"]"},
      {R"({"prompt": [8], "batch": [1], "kv": ["fp16"], "gen": -1})", "gen is -1"},
      {R"({"prompt": [8], "batch": [1], "kv": ["nuq4"], "block": [7]})", "kv[0]: "},
      {R"({"prompt": [8], "batch": [1], "kv": ["fp16"], "ctx": 1})", "unknown key \"ctx\""},
      {R"({"prompt": [8], "batch": [1]})", "kv is missing"},
      {R"({"prompt": [8], )", "grid.json"},
      {"[]", "grid.json"},
      {"", "grid.json"},
      {"{\"prompt\": [8], \"batch\": [1], \"kv\": [\"\xff\"]}", "grid.json"},
  };
  for (const auto& [text, place] : grids) {
    SCOPED_TRACE(text);
    expect_refused(sweep(grid(text)), place);
  }
  EXPECT_FALSE(fs::exists(path("results")));
}

TEST_F(Sweep, AFolderThatCannotBeWrittenIsRefused) {
  expect_refused("sweep -m embedded --quick -o /proc/nonexistent", "can't make /proc/nonexistent");
  expect_refused("sweep -m embedded --quick -o /proc", "can't write /proc/index.jsonl");
  write_file_atomic(path("file"), "kept");
  expect_refused("sweep -m embedded --quick -o " + path("file"), path("file"));
  EXPECT_EQ(read_text(path("file")), "kept");
}

TEST_F(Sweep, AResultOfAnotherSchemaIsRefusedAndStays) {
  ASSERT_EQ(run(sweep("--config len16_batch1_gen2_fp16")).code, 0);
  const std::string file = file_of("len16_batch1_gen2_fp16");
  const std::pair<const char*, const char*> others[] = {
      {"{\"schema\": 9}", "schema 9, but results here have 1"},
      {"{\"schema\": 1, \"command\": \"bench\"}", "not a result of a sweep"},
      {"{", "not a result of a sweep"},
      {"", "not a result of a sweep"},
  };
  for (const auto& [text, why] : others) {
    SCOPED_TRACE(text);
    write_file_atomic(file, std::string(text));
    for (const char* how : {"", " --list", " --collect --quiet"}) {
      expect_refused(sweep("--config len16_batch1_gen2_fp16" + std::string(how)), why);
    }
    EXPECT_EQ(read_text(file), text);
  }
}

TEST_F(Sweep, TheGridsOfTheRepositoryAreRead) {
  for (const auto& entry : fs::directory_iterator(KVQUANT_SOURCE_DIR "/grids")) {
    if (entry.path().extension() != ".json") continue;
    const Outcome outcome =
        run("sweep -m embedded --list -o " + path("results") + " --grid " + entry.path().string());
    // The embedded model reads 2048 tokens: some grids are longer altogether.
    const bool is_read =
        outcome.code == 0 || outcome.err.find("no configuration is left") != std::string::npos;
    EXPECT_TRUE(is_read) << entry.path() << outcome.err;
  }
}

}  // namespace
}  // namespace kvquant
