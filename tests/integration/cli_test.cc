// Runs the program as a user would: exit codes, streams, messages of one line.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "base/device.h"
#include "program.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;
using test::Outcome;

class Cli : public test::ProgramTest {};

TEST_F(Cli, HelpAndVersionSucceed) {
  EXPECT_EQ(run("--help").code, 0);
  EXPECT_EQ(run("--version").code, 0);
  for (const char* command : {"demo", "info", "formats", "generate", "chat", "calibrate",
                              "perplexity", "allocate", "eval", "bench", "make-model"}) {
    EXPECT_EQ(run(std::string(command) + " --help").code, 0) << command;
  }
}

TEST_F(Cli, AGpuThatCanNotBeUsedIsOneLineAndExitCodeThree) {
  for (const std::string device : {"cuda", "cuda:0", "cuda:99"}) {
    if (device != "cuda:99" && has_usable_device()) continue;
    const Outcome outcome = run("generate -m embedded -p Hello --device " + device);
    EXPECT_EQ(outcome.code, 3) << device;
    EXPECT_EQ(outcome.out, "") << device;
    EXPECT_NE(outcome.err.find("device cuda"), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  }
}

TEST_F(Cli, BadUsageIsOneLineAndExitCodeTwo) {
  expect_refused("", "subcommand");
  expect_refused("fly", "fly");
  expect_refused("chat -m embedded --json -", "--json");
  expect_refused("bench -m embedded -c 512", "--ctx");
  expect_refused("bench alloc -d 9", "at least 10");
  expect_refused("bench kernels --kv k=nuq4,v=fp16", "of one type");
  expect_refused("bench kernels --kv k=nuq4,v=had+nuq3 --head-dim 80", "power of two");
  expect_refused("generate -m embedded -p Hello --kv nuq9", "nuq9");
  expect_refused("generate -m embedded -p Hello --kv k=pcaw8", "not built yet");
  expect_refused("generate -m embedded -p Hello --kv v=pca8", "needs a calibration");
  expect_refused("perplexity -m embedded --kv v=pca65", "rank 65");
  expect_refused("perplexity -m embedded --kv v=pca0", "rank");
  expect_refused("generate -m embedded -p Hello --device gpu", "--device gpu is unknown");
  expect_refused("generate -m embedded -p ''", "empty");
  expect_refused("generate -m embedded -p Hello -c 2", "context");
  expect_refused("generate -m embedded -p Hello -n 1 --top-p 7", "top-p");
  expect_refused("generate -m no/such/model -p Hello", "no/such/model");
  expect_refused("perplexity -m embedded -f no/such/text", "no/such/text");
  expect_refused("info -m embedded --memory lots", "lots");
  expect_refused("bench -m embedded -p 0 -n 0", "nothing to time");
  expect_refused("bench -m embedded -p 8 -d 9223372036854775807", "context");
  expect_refused("perplexity -m embedded --max-ppl-delta nan", "max-ppl-delta");
}

TEST_F(Cli, SizesOfMemoryAreRead) {
  const auto memory_of = [&](const std::string& size) {
    const Outcome outcome = run("info -m embedded --kv fp16 -q --json - --memory " + size);
    EXPECT_EQ(outcome.code, 0) << size << outcome.err;
    return nlohmann::json::parse(outcome.out).at("config").at("memory_bytes").get<int64_t>();
  };
  constexpr int64_t kMega = int64_t{1} << 20;
  EXPECT_EQ(memory_of("8GiB"), 8192 * kMega);
  EXPECT_EQ(memory_of("8G"), 8192 * kMega);
  EXPECT_EQ(memory_of("512M"), 512 * kMega);
  EXPECT_EQ(memory_of("1.5gib"), 1536 * kMega);
  EXPECT_EQ(memory_of("2T"), 2 * kMega * kMega);
  EXPECT_EQ(memory_of("500MB"), 500000000);
  EXPECT_EQ(memory_of("1000000"), 1000000);
  for (const char* size : {"''", "0", "0.5", "-8GiB", "GiB", "8GiBs", "8 GiB", "8,5G", "nan", "inf",
                           "1e30", "9999999999T", "x8"}) {
    const std::string quoted = std::string("--memory='") + size + "'";
    expect_refused(
        std::string("info -m embedded ") + (size[0] == '\'' ? "--memory ''" : quoted.c_str()),
        "8GiB");
  }
}

TEST_F(Cli, InfoSaysWhatFitsForEveryFormat) {
  const Outcome outcome = run("info -m embedded -q --json - --memory 64MiB -c 300");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  const auto weight_bytes = document.at("model").at("weight_bytes").get<int64_t>();
  ASSERT_EQ(document.at("results").size(), 11u);
  for (const auto& result : document.at("results")) {
    const auto cache_bytes = result.at("cache_bytes").get<int64_t>();
    const auto batch = result.at("largest_batch").get<int64_t>();
    EXPECT_EQ(result.at("context"), 300);
    EXPECT_GT(result.at("longest_context").get<int64_t>(), 300);
    EXPECT_NEAR(static_cast<double>(batch * cache_bytes + weight_bytes), 64 * 1048576.0,
                static_cast<double>(cache_bytes));
  }
  const Outcome none = run("info -m embedded --memory 1MiB --kv nuq4");
  EXPECT_NE(none.out.find("the weights alone need more"), std::string::npos) << none.out;
}

TEST_F(Cli, InfoSaysWhatIsSpecialAboutAModel) {
  const std::string golden = KVQUANT_SOURCE_DIR "/tests/golden/";
  const auto expect_info = [&](const char* model, const char* part) {
    const Outcome outcome = run("info --kv fp16 -m " + golden + model);
    EXPECT_EQ(outcome.code, 0);
    EXPECT_NE(outcome.out.find(part), std::string::npos) << outcome.out;
  };
  expect_info("tiny_mistral", "\n  sliding window of 8 tokens\n");
  expect_info("tiny_qwen2", "\n  biases of queries, keys and values\n");
  expect_info("tiny_qwen3", "\n  norms of queries and keys\n");
  expect_info("tiny_linear", "RoPE theta 10000 stretched 4 times (linear), ");
  expect_info("tiny_llama3", "stretched 8 times (llama3 of 64 tokens), ");
  expect_info("tiny_yarn", "stretched 4 times (yarn of 64 tokens, attention factor 1.139), ");
  expect_info("tiny_untied", "RoPE theta 10000, untied embeddings\n\n");
}

TEST_F(Cli, ADynamicModelReadsMoreWhenMoreIsAskedFor) {
  const std::string model = "generate -n 1 -m " KVQUANT_SOURCE_DIR "/tests/golden/tiny_dynamic -p ";
  const std::string prompt = "abcdefghijklmnopqrstuvwxyz0123";
  expect_refused(model + prompt, "the prompt needs 30 tokens, the context has 24");
  expect_refused(model + prompt + " -c 20", "the context has 20");
  EXPECT_EQ(run(model + prompt + " -c 40").code, 0);
}

TEST_F(Cli, ANumberThatIsNoneIsNamedWithItsLeast) {
  for (const char* number : {"-1", "x", "1.5", "nan", "99999999999999999999"}) {
    const std::string text = number;
    expect_refused("generate -m embedded -p a -n " + text,
                   "'" + text + "' is not a whole number of at least 0");
    expect_refused("perplexity -m embedded --windows " + text, "at least 1");
    expect_refused("bench -m embedded -p 8," + text, "at least 0");
  }
}

TEST_F(Cli, APlaceThatCannotBeWrittenIsRefusedBeforeTheWork) {
  // Neither model exists: the message would be about it.
  expect_refused("info -m no/model --json no/such/folder/x.json", "no/such/folder");
  expect_refused("perplexity -m no/model --json " + folder_.string(), "directory");
  expect_refused("bench kernels --json no/such/folder/x.json", "no/such/folder");
}

TEST_F(Cli, OutputThatDoesNotFitIsNotASuccess) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  for (const char* arguments :
       {"--help", "formats", "formats --json -", "generate -m embedded -p a -n 2 -q"}) {
    const std::string command =
        std::string(KVQUANT_PROGRAM) + " " + arguments + " >/dev/full 2>" + path("err");
    const int status = std::system(command.c_str());
    EXPECT_EQ(WEXITSTATUS(status), 3) << arguments;
    const std::string err = read_text(path("err"));
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    EXPECT_NE(err.find("No space left"), std::string::npos) << err;
  }
}

TEST_F(Cli, AnInterruptIsExitCode130) {
  expect_interrupted("perplexity -m embedded -q --kv fp16 --kv nuq4 --json " + path("x.json"));
  EXPECT_FALSE(fs::exists(path("x.json")));
}

TEST_F(Cli, TextThatIsNotUtf8IsRefused) {
  write_file_atomic(path("bad.txt"), "abc\xff\xfe");
  expect_refused("generate -m embedded -f " + path("bad.txt"), "bad.txt: not UTF-8 at byte 3");
}

TEST_F(Cli, ATruncatedModelIsRefused) {
  fs::copy(KVQUANT_SOURCE_DIR "/assets/ref5m", path("model"));
  fs::resize_file(path("model/model.safetensors"), 100000);
  expect_refused("info -m " + path("model"), "model.safetensors");
}

TEST_F(Cli, GenerateStreamsAndIsDeterministic) {
  const std::string arguments = "generate -m embedded -p 'The old man' -n 8 --kv nuq4-1% --temp 1";
  const Outcome first = run(arguments);
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_GT(first.out.size(), 4u);
  EXPECT_EQ(run(arguments + " -t 1").out, first.out);
  EXPECT_NE(first.err.find("tokens/s"), std::string::npos);
}

TEST_F(Cli, ASavedCacheGoesOnAsIfThePromptHadBeenReadAgain) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += " The old man went down to the harbour and saw the sea.";
  write_file_atomic(path("begin.txt"), text);
  write_file_atomic(path("whole.txt"), text + " And then");
  const std::string generate = "generate -m embedded --temp 0 -n 12 --kv nuq4-1% -f ";
  const std::string file = path("cache.kvq"), load = " --load-cache " + file;
  const std::string read = "generate -m embedded -n 0 --kv nuq4-1% -f " + path("begin.txt");
  ASSERT_EQ(run(read + " --save-cache " + file).code, 0);

  // The rest as the end of the whole prompt, and by itself.
  const Outcome prefix = run(generate + path("whole.txt") + load + " --json " + path("a.json"));
  EXPECT_EQ(prefix.code, 0) << prefix.err;
  write_file_atomic(path("rest.txt"), " And then");
  const Outcome behind = run(generate + path("rest.txt") + load + " --save-cache " + file);
  EXPECT_EQ(behind.out, prefix.out) << behind.err;
  const auto json = nlohmann::json::parse(read_text(path("a.json")))["results"][0];
  EXPECT_GT(json["n_loaded"], 200);
  EXPECT_LT(json["n_prompt"], 5);
  EXPECT_NE(behind.err.find("tokens saved in " + file), std::string::npos) << behind.err;
  const Outcome more = run("generate -m embedded -n 3 --kv nuq4-1%" + load);  // without a prompt
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_GT(more.out.size(), 1u);
}

TEST_F(Cli, ACacheFileOfSomethingElseIsRefused) {
  const std::string file = path("cache.kvq");
  const std::string generate = "generate -m embedded -p 'The old man' -n 2 --kv ";
  ASSERT_EQ(run(generate + "nuq4 --save-cache " + file).code, 0);
  expect_refused(generate + "nuq3 --load-cache " + file, "spec");
  expect_refused(generate + "nuq4 -c 4 --load-cache " + file, "context");
  expect_refused(generate + "nuq4 --load-cache " + path("none"), "none");
  expect_refused(generate + "nuq4 --save-cache no/such/folder/x", "no/such/folder");
  expect_refused("generate -m embedded -n 2 --kv nuq4", "empty");
  fs::resize_file(file, 5000);
  expect_refused(generate + "nuq4 --load-cache " + file, "truncated");
  write_file_atomic(file, "{}");
  expect_refused(generate + "nuq4 --load-cache " + file, "not a cache file");
}

TEST_F(Cli, ASpecWithoutAFastKernelIsToldUnlessQuiet) {
  const std::string generate = "generate -m embedded -p 'The old man' -n 1 --kv ";
  const auto is_told = [&](const std::string& arguments) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.err.find("no fast kernel") != std::string::npos;
  };
  EXPECT_TRUE(is_told(generate + "k=nuq4"));
  EXPECT_FALSE(is_told(generate + "k=nuq4 -q"));
  EXPECT_FALSE(is_told(generate + "v=nuq4"));
  EXPECT_FALSE(is_told(generate + "k=int8,v=nuq4"));
  EXPECT_TRUE(is_told("perplexity -m embedded -c 64 --windows 1 --kv nuq4 --kv k=nuq4"));
  EXPECT_TRUE(is_told("bench -m embedded -p 8 -n 0 -r 1 --kv nuq4,layers=2:v=fp16"));
}

TEST_F(Cli, JsonHasTheSchemaOfAllCommands) {
  const Outcome outcome =
      run("perplexity -m embedded -c 256 --windows 2 --kv fp16 --kv nuq3-1% --json -");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(document.at("schema"), 1);
  EXPECT_EQ(document.at("command"), "perplexity");
  for (const char* field : {"model", "config", "machine"}) {
    EXPECT_TRUE(document.at(field).is_object());
  }
  ASSERT_EQ(document.at("results").size(), 2u);
  const auto& fp16 = document["results"][0];
  const auto& nuq3 = document["results"][1];
  EXPECT_EQ(fp16.at("kl_mean"), 0.0);
  EXPECT_EQ(fp16.at("tokens"), 510);
  EXPECT_NEAR(fp16.at("true_bits"), 16.0, 0.01);
  EXPECT_GT(nuq3.at("kl_mean"), 0.001);
  EXPECT_LT(nuq3.at("kl_mean"), 0.5);
  EXPECT_LT(nuq3.at("true_bits"), 6.5);
  EXPECT_EQ(nuq3.at("mode"), "strict");
  for (const char* field :
       {"spec", "spec_resolved", "perplexity", "ppl_stderr", "ppl_delta", "ppl_delta_rel",
        "kl_median", "kl_p99", "kl_max", "top1_agreement", "cache_bytes"}) {
    EXPECT_TRUE(nuq3.contains(field)) << field;
  }
}

TEST_F(Cli, ALimitThatIsExceededIsExitCodeOne) {
  // Of a model this small, perplexity rises or falls by chance: with one of these it rises.
  EXPECT_EQ(run("perplexity -m embedded -c 256 --windows 2 --kv int4 --kv k=int4 --kv v=int4 "
                "--kv int8 --kv k=int8 --kv v=int8 --kv bf16 --max-ppl-delta 0")
                .code,
            1);
  EXPECT_EQ(run("perplexity -m embedded -c 128 --windows 1 --kv nuq4 --max-ppl-delta 5").code, 0);
}

TEST_F(Cli, AMadeModelLoadsAndIsBenched) {
  ASSERT_EQ(run("make-model --layers 2 --hidden 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 96 "
                "--vocab 300 --ctx 512 -o " +
                path("made"))
                .code,
            0);
  const Outcome outcome =
      run("bench -m " + path("made") + " -p 32 -n 4 -d 0,64 -r 2 --kv fp16 --kv nuq3-1% --json -");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(document.at("results").size(), 8u);
  for (const auto& row : document["results"]) {
    EXPECT_EQ(row.at("samples_s").size(), 2u);
    EXPECT_GT(row.at("tokens_per_s_mean"), 0.0);
  }
}

TEST_F(Cli, FormatsResolvesSpecs) {
  const Outcome outcome = run("formats --resolve nuq3-1%");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find("k=nuq3-1%,v=nuq3-1%"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace kvquant
