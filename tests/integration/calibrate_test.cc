// kvquant calibrate, and --calib elsewhere, as a user meets them.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "formats/safetensors.h"
#include "kvquant/codebook.h"
#include "program.h"
#include "quant/calibration.h"
#include "quant/fit_choices.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using test::Outcome;

class CalibrateProgram : public test::ProgramTest {
 protected:
  // A calibration of the embedded model by two short samples.
  std::string calibrated(const std::string& name, const std::string& more = "",
                         int seq_len = 256) const {
    const Outcome outcome = run("calibrate -m embedded --samples 2 --seq-len " +
                                std::to_string(seq_len) + " -o " + path(name) + " " + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return read_text(path(name));
  }
};

TEST_F(CalibrateProgram, GivesTheSameBytesEveryTimeAndAtAnyNumberOfThreads) {
  const std::string first = calibrated("a");
  EXPECT_EQ(calibrated("b"), first);
  EXPECT_EQ(calibrated("c", "-t 1"), first);
  EXPECT_EQ(calibrated("d", "-t 3"), first);
  EXPECT_NE(calibrated("e", "--seed 7"), first);
}

TEST_F(CalibrateProgram, SaysWhatItDidAndWritesAFileThatLoads) {
  const Outcome outcome = run("calibrate -m embedded --samples 3 --seq-len 128 --rank 8 -o " +
                              path("c.safetensors") + " --json -");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(document.at("command"), "calibrate");
  const auto& result = document.at("results").at(0);
  EXPECT_EQ(result.at("tokens"), 384);
  EXPECT_EQ(result.at("num_samples"), 3);
  EXPECT_EQ(result.at("rank"), 8);
  EXPECT_EQ(result.at("file_bytes"), fs::file_size(path("c.safetensors")));
  EXPECT_EQ(result.at("texts").size(), 3u);
  const Calibration calibration = load_calibration(path("c.safetensors"));
  EXPECT_EQ(calibration.info.model_fingerprint, document.at("model").at("fingerprint"));
  EXPECT_EQ(calibration.info.texts.at(0).file, "sample.txt");
  EXPECT_EQ(calibration.layers.size(), 6u);
  const Outcome text = run("calibrate -m embedded --samples 2 --seq-len 64 -o " + path("c"));
  EXPECT_NE(text.out.find("6 layers calibrated on 128 tokens (2 samples of 64)"), std::string::npos)
      << text.out;
}

struct Ablation {
  const char* options;
  const char* recipe;
};
constexpr Ablation kAblations[] = {
    {"",
     "outliers=error-saved feedback=on codebook=exact weights=scale codebooks=layer bases=outputs"},
    {"--recipe percentile",
     "outliers=percentile feedback=off codebook=exact weights=scale codebooks=layer bases=outputs"},
    {"--recipe percentile --feedback on",
     "outliers=percentile feedback=on codebook=exact weights=scale codebooks=layer bases=outputs"},
    {"--feedback off",
     "outliers=error-saved feedback=off codebook=exact weights=scale codebooks=layer "
     "bases=outputs"},
    {"--codebook lloyd",
     "outliers=error-saved feedback=on codebook=lloyd weights=scale codebooks=layer bases=outputs"},
    {"--codebook normal-float",
     "outliers=error-saved feedback=on codebook=normal-float weights=scale codebooks=layer "
     "bases=outputs"},
    {"--codebook-weights none",
     "outliers=error-saved feedback=on codebook=exact weights=none codebooks=layer bases=outputs"},
    {"--codebook-weights query",
     "outliers=error-saved feedback=on codebook=exact weights=query codebooks=layer bases=outputs"},
    {"--bases values",
     "outliers=error-saved feedback=on codebook=exact weights=scale codebooks=layer bases=values"},
    {"--codebook-per head",
     "outliers=error-saved feedback=on codebook=exact weights=scale codebooks=head bases=outputs"},
};

TEST_F(CalibrateProgram, DoesWhatIsChosenAndSaysItInTheFile) {
  std::set<std::string> files;
  for (const Ablation& ablation : kAblations) {
    const std::string options = ablation.options;
    const std::string bytes = calibrated("c", options, 64);
    const Calibration calibration = load_calibration(path("c"));
    EXPECT_EQ(calibration.info.recipe, ablation.recipe);
    if (options.find("lloyd") != std::string::npos) {  // the one that draws
      EXPECT_EQ(calibrated("again", options + " -t 1", 64), bytes);
    }
    Calibration nameless = calibration;  // files differ by more than this text
    nameless.info.recipe = "";
    save_calibration(nameless, path("nameless"));
    EXPECT_TRUE(files.insert(read_text(path("nameless"))).second) << ablation.options;
  }
  EXPECT_EQ(calibrated("bundle", "--recipe percentile", 64),
            calibrated("parts", "--outliers percentile --feedback off", 64));
  const std::string command = "calibrate -m no/model -o " + path("c");
  expect_refused(command + " --codebook best", "--codebook");
  expect_refused(command + " --feedback yes", "--feedback");
  expect_refused(command + " --outliers none", "--outliers");
  expect_refused(command + " --codebook-per channel", "--codebook-per");
  EXPECT_NE(run("calibrate --help").out.find("--codebook-per"), std::string::npos);
}

TEST_F(CalibrateProgram, FitsACodebookPerHeadThatPerplexityUsesAndCounts) {
  const std::string bytes = calibrated("head", "--codebook-per head --per-layer " + path("books"));
  EXPECT_EQ(calibrated("again", "--codebook-per head -t 1"), bytes);
  calibrated("layer");
  const Calibration head = load_calibration(path("head")), layer = load_calibration(path("layer"));
  EXPECT_EQ(head.layers[3].key.codebooks[1].size(), 2 * layer.layers[3].key.codebooks[1].size());
  EXPECT_EQ(head.layers[3].key.scale, layer.layers[3].key.scale);
  const auto books = load_per_layer_codebooks(path("books"));
  ASSERT_EQ(books.size(), 6u);
  EXPECT_EQ(books[3].num_heads, 2);
  EXPECT_EQ(books[3].levels[16], head.layers[3].key.codebooks[2][(4 * 2 + 1) * 16]);

  const auto result = [&](const std::string& file) {
    const Outcome outcome =
        run("perplexity -m embedded -c 128 --windows 1 --kv nuq3 -q --json - --calib " + file);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return nlohmann::json::parse(outcome.out).at("results").at(0);
  };
  const auto with_heads = result(path("head")), with_layers = result(path("layer"));
  const double ratio =
      with_heads.at("kl_mean").get<double>() / with_layers.at("kl_mean").get<double>();
  EXPECT_GT(ratio, 0.7);
  EXPECT_LT(ratio, 1.3);
  EXPECT_NE(ratio, 1.0);
  // A codebook of 8 levels more on either side of 6 layers.
  EXPECT_EQ(
      with_heads.at("cache_bytes").get<int64_t>() - with_layers.at("cache_bytes").get<int64_t>(),
      6 * 2 * 8 * 4);
}

TEST_F(CalibrateProgram, TakesFisherInformationFromAFile) {
  std::vector<SafetensorsEntry> entries;
  for (int layer = 0; layer < 6; ++layer) {
    for (const char* side : {"key", "value"}) {
      entries.push_back(
          {"fisher." + std::string(side) + "." + std::to_string(layer), "F32", {128}});
    }
  }
  std::vector<float> gradients(128, 1.0f);
  std::fill_n(gradients.begin(), 8, 50.0f);
  write_safetensors(path("gradients"), entries, {}, [&](size_t, const ByteSink& sink) {
    sink(std::as_bytes(std::span(gradients)));
  });
  const std::string fisher = "--codebook-weights fisher --fisher " + path("gradients");
  calibrated("c", fisher, 64);
  calibrated("plain", "", 64);
  const Calibration a = load_calibration(path("c")), b = load_calibration(path("plain"));
  EXPECT_NE(a.layers[2].key.codebooks, b.layers[2].key.codebooks);
  EXPECT_NE(a.info.recipe.find("weights=fisher"), std::string::npos);
  const std::string command = "calibrate -m embedded --seq-len 64 -o " + path("no");
  expect_refused(command + " --codebook-weights fisher", "need each other");
  expect_refused(command + " --fisher " + path("gradients"), "need each other");
  expect_refused(command + " --codebook-weights fisher --fisher no/file", "no/file");
  expect_refused(command + " --codebook-weights fisher --fisher " + path("c"), "fisher.key.0");
  EXPECT_FALSE(fs::exists(path("no")));
}

TEST_F(CalibrateProgram, WritesCodebooksAndScalesLayerByLayer) {
  calibrated("c", "--per-layer " + path("made/default"), 64);
  calibrated("c3", "--per-layer " + path("made/three") + " --per-layer-codec nuq3", 64);
  EXPECT_EQ(read_text(path("c3")), read_text(path("c")));
  const Calibration calibration = load_calibration(path("c"));
  const auto books4 = load_per_layer_codebooks(path("made/default"));
  const auto books3 = load_per_layer_codebooks(path("made/three"));
  const auto scales = load_per_layer_scaling_factors(path("made/three"));
  ASSERT_EQ(books4.size(), 6u);
  ASSERT_EQ(books3.size(), 6u);
  ASSERT_EQ(scales.size(), 6u);
  for (size_t layer = 0; layer < 6; ++layer) {
    const KeyCalibration& key = calibration.layers[layer].key;
    EXPECT_EQ(books4[layer].num_levels, 16);
    EXPECT_EQ(books4[layer].levels[2], key.codebooks[2][4 * 16 + 2]);  // 1% is the fifth of 8
    EXPECT_EQ(books3[layer].num_levels, 8);
    EXPECT_EQ(books3[layer].levels[2], key.codebooks[1][2]);
    EXPECT_EQ(scales[layer].num_heads, calibration.info.shape.num_kv_heads);
    EXPECT_EQ(scales[layer].head_dim, calibration.info.shape.head_dim);
    EXPECT_EQ(scales[layer].scales[5], to_float(key.scale[1][5]));
  }
}

TEST_F(CalibrateProgram, RefusesAPerLayerFolderOrCodecBeforeItWorks) {
  const std::string command = "calibrate -m no/model -o " + path("c");
  write_file_atomic(path("file"), "");
  expect_refused(command + " --per-layer " + path("file"), path("file"));
  expect_refused(command + " --per-layer " + path("d") + " --per-layer-codec int4", "int4");
  expect_refused(command + " --per-layer-codec nuq3", "--per-layer");
  EXPECT_FALSE(fs::exists(path("d")));
}

TEST_F(CalibrateProgram, TakesTheSamplesThereAreAndSaysSo) {
  const Outcome outcome =
      run("calibrate -m embedded --samples 1000 --seq-len 512 -q -o " + path("c"));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("warning: the texts hold "), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find(" whole samples of 512 tokens, not 1000"), std::string::npos);
}

TEST_F(CalibrateProgram, BadInputIsOneLineAndExitCodeTwo) {
  const std::string command = "calibrate -m embedded -o " + path("c");
  write_file_atomic(path("short.txt"), "Too short a text.");
  expect_refused(command + " --data " + path("short.txt"), "fewer than one sample of 2048");
  expect_refused(command + " --data " + path("short.txt"), "shorter --seq-len");
  write_file_atomic(path("bad.txt"), "abc\xff\xfe");
  expect_refused(command + " --data " + path("short.txt") + " " + path("bad.txt"),
                 "bad.txt: not UTF-8 at byte 3");
  expect_refused(command + " --data no/such/text", "no/such/text");
  expect_refused(command + " --seq-len 4096", "[16, 2048], the model's context");
  expect_refused(command + " --seq-len 15", "[16, 2048]");
  expect_refused(command + " --rank 65", "[1, 64], the model's head_dim");
  expect_refused(command + " --samples 0", "at least 1");
  expect_refused(command + " -c 512", "--seq-len");
  expect_refused("calibrate -m embedded", "output");
  EXPECT_FALSE(fs::exists(path("c")));
  // Before the model is looked for, which does not exist.
  expect_refused("calibrate -m no/model -o no/such/folder/c", "no/such/folder");
  expect_refused("calibrate -m no/model -o " + folder_.string(), "directory");
  if (fs::exists("/proc/self")) expect_refused("calibrate -m no/model -o /proc/c", "/proc/c");
}

TEST_F(CalibrateProgram, AFullDiskIsExitCodeThree) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  const Outcome outcome = run("calibrate -m embedded --samples 1 --seq-len 64 -q -o /dev/full");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_NE(outcome.err.find("No space left"), std::string::npos) << outcome.err;
}

TEST_F(CalibrateProgram, AnInterruptLeavesNoFile) {
  expect_interrupted("calibrate -m embedded --samples 4 --seq-len 512 -q -o " + path("c"));
  EXPECT_FALSE(fs::exists(path("c")));
}

// An address space in which the model fits but not the activations of 200 samples.
TEST_F(CalibrateProgram, TooLittleMemoryIsExitCodeThreeWithItsRemedy) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need the address space";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "sanitizers need the address space";
#endif
#endif
  std::string files;
  for (int i = 0; i < 150; ++i) files += " " KVQUANT_SOURCE_DIR "/assets/sample.txt";
  const std::string command = std::string("sh -c 'ulimit -v 600000; exec ") + KVQUANT_PROGRAM +
                              " calibrate -t 1 -m embedded --samples 400 -q --data" + files +
                              " -o " + path("c") + "' 2>" + path("err");
  const int status = std::system(command.c_str());
  const std::string err = read_text(path("err"));
  EXPECT_EQ(WEXITSTATUS(status), 3) << err;
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_NE(err.find("OOM during calibration: "), std::string::npos) << err;
  EXPECT_NE(err.find("use fewer --samples than 400 or a --seq-len shorter than 2048"),
            std::string::npos)
      << err;
  EXPECT_FALSE(fs::exists(path("c")));
}

TEST_F(CalibrateProgram, PerplexityOnTextThatWasCalibratedOnWarnsAndSaysSoInItsResult) {
  calibrated("c");  // on two windows of 256 tokens of the sample text
  const std::string command = "perplexity -m embedded --kv nuq4 -q --json -";
  const auto perplexity = [&](const std::string& more) {
    const Outcome outcome = run(command + " " + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const auto document = nlohmann::json::parse(outcome.out);
    const bool overlap = document.at("calibration_overlap");
    EXPECT_EQ(outcome.err.find("warning: the calibration was made from a part of this text") !=
                  std::string::npos,
              overlap)
        << outcome.err;
    return document;
  };
  const auto same = perplexity("-c 1024 --calib " + path("c"));
  EXPECT_EQ(same.at("calibration_overlap"), true);
  const auto& used = same.at("config").at("calibration");
  EXPECT_EQ(used.at("path"), path("c"));
  EXPECT_EQ(used.at("recipe"), to_string(FitChoices{}));
  EXPECT_EQ(used.at("num_samples"), 2);
  EXPECT_EQ(used.at("seq_len"), 256);
  EXPECT_EQ(used.at("fingerprint").get<std::string>().size(), 16u);

  write_file_atomic(path("other.txt"), read_text(KVQUANT_SOURCE_DIR "/README.md"));
  const auto other =
      perplexity("-c 256 --windows 1 -f " + path("other.txt") + " --calib " + path("c"));
  EXPECT_EQ(other.at("calibration_overlap"), false);
  const auto none = perplexity("-c 256 --windows 1");
  EXPECT_EQ(none.at("calibration_overlap"), false);
  EXPECT_TRUE(none.at("config").at("calibration").is_null());
}

TEST_F(CalibrateProgram, PerplexitySaysWhatItWasCalibratedBy) {
  calibrated("c");
  const std::string command = "perplexity -m embedded -c 128 --windows 1 --kv nuq4";
  EXPECT_NE(run(command + " --calib " + path("c"))
                .out.find("calibrated by " + path("c") + " (2 × 256 tokens)"),
            std::string::npos);
  EXPECT_NE(run(command).out.find("strict, not calibrated"), std::string::npos);
}

TEST_F(CalibrateProgram, TheDemoCalibratesItselfOnTextThatItsPerplexityDoesNotRead) {
  const Outcome outcome = run("demo -m embedded -q --kv nuq3-1% --json -");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(document.at("calibration_overlap"), false);
  EXPECT_GT(document.at("config").at("calibration_s"), 0.0);
  const auto& used = document.at("config").at("calibration");
  EXPECT_TRUE(used.at("path").is_null());
  EXPECT_GT(used.at("num_samples"), 1);
  const double calibrated_kl = document.at("results").at(0).at("kl_mean");

  // The same two windows without it: calibration on so little text still helps.
  const Outcome plain = run("perplexity -m embedded -q -c 1024 --windows 2 --kv nuq3-1% --json -");
  ASSERT_EQ(plain.code, 0) << plain.err;
  const double plain_kl = nlohmann::json::parse(plain.out).at("results").at(0).at("kl_mean");
  EXPECT_LT(calibrated_kl, 0.9 * plain_kl);
  EXPECT_GT(calibrated_kl, 0.1 * plain_kl);
}

TEST_F(CalibrateProgram, TheDemoTakesAFileInstead) {
  calibrated("c");
  const Outcome outcome = run("demo -m embedded -q --kv nuq3-1% --calib " + path("c"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("calibrated by " + path("c")), std::string::npos) << outcome.out;
}

TEST_F(CalibrateProgram, SpecsThatCannotRunAreRefusedByName) {
  const std::string command = "perplexity -m embedded -c 128 --windows 1 -q --kv ";
  EXPECT_EQ(run(command + "int8").code, 0);
  EXPECT_EQ(run(command + "v=had+nuq4").code, 0);
  EXPECT_NE(run("formats --resolve v=had+nuq4").out.find("k=fp16,v=had+nuq4,"), std::string::npos);
  expect_refused(command + "k=had+nuq4", "codec 'had+nuq4' is not built yet for keys");
  expect_refused(command + "nuq4-6%", "a percentage above 0 and up to 5");
}

TEST_F(CalibrateProgram, AFileThatIsMissingOrBrokenOrOfAnotherModelIsRefused) {
  const std::string command = "perplexity -m embedded -c 128 --windows 1 --kv nuq4 --calib ";
  expect_refused(command + "no/such/file", "Calibration file not found: no/such/file");
  expect_refused(command + "no/such/file", "full path");
  expect_refused(command + "''", "path of the calibration file is empty");
  expect_refused(command + folder_.string(), folder_.string());

  const std::string bytes = calibrated("c.safetensors");
  write_file_atomic(path("truncated.safetensors"), bytes.substr(0, bytes.size() / 2));
  expect_refused(command + path("truncated.safetensors"), "truncated.safetensors: ");
  std::string other = bytes;
  other.replace(other.find("layers.3.key.scale2"), 19, "layers.3.key.skale2");
  write_file_atomic(path("other.safetensors"), other);
  expect_refused(command + path("other.safetensors"), "\"layers.3.key.scale2\" is missing");
  write_file_atomic(path("text"), "This is no calibration.");
  expect_refused(command + path("text"), "not a safetensors file");
  expect_refused(command + KVQUANT_SOURCE_DIR "/assets/ref5m/model.safetensors",
                 "not a calibration file");

  ASSERT_EQ(run("make-model --layers 2 --hidden 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 "
                "--vocab 300 --ctx 512 -o " +
                path("made"))
                .code,
            0);
  ASSERT_EQ(
      run("calibrate -m " + path("made") + " --samples 1 --seq-len 64 -o " + path("made.st")).code,
      0);
  expect_refused(command + path("made.st"), "made.st was made for another model (fingerprint ");
  expect_refused("generate -m embedded -p a --calib " + path("made.st"), "another model");
}

}  // namespace
}  // namespace kvquant
