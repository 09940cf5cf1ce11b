// Every result says what made it: configuration, seed, machine, compiler, commit, versions.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "program.h"

namespace kvquant {
namespace {

using Json = nlohmann::json;
using test::Outcome;

class Provenance : public test::ProgramTest {
 protected:
  Json document_of(const std::string& arguments) const {
    const Outcome outcome = run(arguments + " -q --json " + path("result.json"));
    EXPECT_EQ(outcome.code, 0) << arguments << "\n" << outcome.err;
    return Json::parse(read_text(path("result.json")));
  }

  static void expect_machine(const Json& document, const std::string& arguments) {
    EXPECT_EQ(document.at("schema"), 1) << arguments;
    EXPECT_TRUE(document.at("config").is_object()) << arguments;
    for (const char* key : {"cpu", "cores", "memory_bytes", "system", "compiler", "commit",
                            "version", "onednn", "backend"}) {
      EXPECT_TRUE(document.at("machine").contains(key)) << arguments << ": " << key;
    }
  }
};

TEST_F(Provenance, IsInEveryResultOfAModel) {
  const std::string calibration = path("c.safetensors");
  for (const std::string& arguments :
       {"calibrate -m embedded --samples 1 --seq-len 64 --seed 7 -o " + calibration,
        std::string("perplexity -m embedded -c 64 --windows 1 --kv nuq4 --seed 7"),
        "perplexity -m embedded -c 64 --windows 1 --kv nuq4 --seed 7 --calib " + calibration,
        std::string("eval -m embedded --tasks passkey --context-lengths 256 --limit 1 --kv nuq4 "
                    "--seeds 7,8"),
        std::string("bench -m embedded -p 8 -n 2 -r 2 --kv nuq4 --seed 7"),
        std::string("generate -m embedded -p Hello -n 2 --kv nuq4 --seed 7"),
        "sweep -m embedded --config len8_batch1_gen2_nuq4 --warmup 1 --max-repetitions 1 --seed 7 "
        "--powercap /nonexistent -o " +
            path("results")}) {
    const Json document = document_of(arguments);
    expect_machine(document, arguments);
    const Json& model = document.at("model");
    EXPECT_FALSE(model.at("fingerprint").get<std::string>().empty()) << arguments;
    const Json& config = document.at("config");
    const bool has_seed = config.at("seed") == 7 || config.value("seeds", Json()) == Json({7, 8});
    EXPECT_TRUE(has_seed) << arguments << "\n" << config.dump(2);
    for (const char* key : {"threads", "device", "precision", "weights", "ubatch", "calibration"}) {
      EXPECT_TRUE(config.contains(key)) << arguments << ": " << key;
    }
    const bool is_calibrated = arguments.find("--calib ") != std::string::npos;
    EXPECT_EQ(config.at("calibration").is_object(), is_calibrated) << arguments;
    ASSERT_FALSE(document.at("results").empty()) << arguments;
  }
}

TEST_F(Provenance, IsInResultsOfTheMachineToo) {
  const std::string energy = "energy --powercap /nonexistent --nvml /nonexistent --region DE";
  const Json document = document_of(energy);
  expect_machine(document, energy);
  EXPECT_EQ(document.at("config").at("region"), "DE");
  EXPECT_NE(document.at("config").at("carbon_source").get<std::string>().find("2023"),
            std::string::npos);
  const std::string kernels = "bench alloc -d 64";
  expect_machine(document_of(kernels), kernels);
}

}  // namespace
}  // namespace kvquant
