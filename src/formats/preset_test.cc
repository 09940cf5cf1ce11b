#include "kvquant/preset.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "base/file.h"
#include "base/test_path.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using test::test_path;

Preset sample() {
  Preset preset;
  preset.model = "ref5m";
  preset.model_fingerprint = "0123456789abcdef";
  preset.name = "balanced";
  preset.spec = "k=int8,v=pca48+int4,sink=1";
  preset.head_dim = 64;
  preset.num_layers = 6;
  preset.rank = 48;
  preset.target = PresetTarget::kBoth;
  preset.bits = 4;
  preset.compression_ratio = 2.5;
  preset.side_compression = 2.5;
  preset.baseline_ppl = 20.5;
  preset.compressed_ppl = 21;
  preset.ppl_delta = 0.024390243902439025;
  preset.kl_divergence = 0.0125;
  preset.true_bits = 6.4;
  preset.window = 2048;
  preset.pareto = {{"k=int8,v=pca48+int4", 6.4, 0.024, 0.0125}};
  preset.eval_text_sha256 = std::string(64, 'a');
  preset.calibration_file = "balanced.safetensors";
  return preset;
}

// The message with which the sample is refused after `edit`.
std::string refusal(const std::function<void(Json&)>& edit) {
  Json json = Json::parse(preset_json(sample()));
  edit(json);
  try {
    parse_preset(json.dump(), "some.json");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

void expect_refused(const std::string& part, const std::function<void(Json&)>& edit) {
  const std::string message = refusal(edit);
  EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected: " << part;
  EXPECT_EQ(message.rfind("some.json", 0), 0u) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(Preset, ComesBackAsItWasWritten) {
  const std::string path = test_path("preset.json");
  save_preset(sample(), path);
  const Preset in = load_preset(path);
  EXPECT_EQ(in.path, path);
  EXPECT_EQ(in.spec, sample().spec);
  EXPECT_EQ(in.rank, 48);
  EXPECT_EQ(in.target, PresetTarget::kBoth);
  EXPECT_EQ(in.ppl_delta, sample().ppl_delta);
  EXPECT_EQ(in.ppl_delta_low, std::nullopt);
  ASSERT_EQ(in.pareto.size(), 1u);
  EXPECT_EQ(preset_json(in), preset_json(sample()));  // all the other fields
  EXPECT_EQ(calibration_path(in),
            (std::filesystem::path(path).parent_path() / "balanced.safetensors").string());
  std::filesystem::remove(path);
}

TEST(Preset, HasTheNamesOfThePublishedPlan) {
  const Json json = Json::parse(preset_json(sample()));
  for (const char* key : {"model", "version", "spec", "rank", "target", "bits", "compression_ratio",
                          "side_compression", "total_compression", "baseline_ppl", "compressed_ppl",
                          "ppl_delta", "kl_divergence", "true_bits", "pareto", "eval_text_sha256",
                          "calibration_file", "head_dim", "num_layers"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["total_compression"], json["compression_ratio"]);
}

TEST(Preset, NeedsNoMoreThanWhatNamesModelAndSpec) {
  const Preset in = parse_preset(
      R"({"model": "m", "version": 1, "spec": "v=pca96", "head_dim": 128, "num_layers": 2})",
      "folder/small.json");
  EXPECT_EQ(in.name, "small");
  EXPECT_EQ(in.rank, 96);
  EXPECT_EQ(in.target, PresetTarget::kValues);
  EXPECT_EQ(in.bits, 16);
  EXPECT_EQ(in.ppl_delta, std::nullopt);
  EXPECT_EQ(calibration_path(in), "");
  for (const char* key : {"model", "version", "spec", "head_dim", "num_layers"}) {
    expect_refused(std::string(key) + " is missing", [&](Json& json) { json.erase(key); });
  }
}

TEST(Preset, RefusesWhatIsNoPresetByName) {
  expect_refused("calibraton_file", [](Json& json) { json["calibraton_file"] = "x"; });
  expect_refused("spec is number, not a string", [](Json& json) { json["spec"] = 3; });
  expect_refused("position 6: expected a rank", [](Json& json) { json["spec"] = "v=pca"; });
  expect_refused("rank", [](Json& json) { json["spec"] = "v=pca96"; });  // of a head_dim of 64
  expect_refused("version is 2", [](Json& json) { json["version"] = 2; });
  expect_refused("head_dim is 0", [](Json& json) { json["head_dim"] = 0; });
  expect_refused("num_layers is -1", [](Json& json) { json["num_layers"] = -1; });
  expect_refused("rank is 32, but", [](Json& json) { json["rank"] = 32; });
  expect_refused("bits is 8, but", [](Json& json) { json["bits"] = 8; });
  expect_refused("target is", [](Json& json) { json["target"] = "v"; });
  expect_refused("spec_resolved is", [](Json& json) { json["spec_resolved"] = "fp16"; });
  expect_refused("total_compression", [](Json& json) { json["total_compression"] = 2.67; });
  expect_refused("kl_divergence is -1", [](Json& json) { json["kl_divergence"] = -1; });
  expect_refused("top1_agreement is 2", [](Json& json) { json["top1_agreement"] = 2; });
  expect_refused("eval_text_sha256", [](Json& json) { json["eval_text_sha256"] = "abc"; });
  expect_refused("control characters", [](Json& json) { json["model"] = "a\x1b[31m"; });
  expect_refused("pareto is no list", [](Json& json) { json["pareto"] = 1; });
  expect_refused("pareto[0]: spec is missing", [](Json& json) { json["pareto"][0].erase("spec"); });
  expect_refused("pareto[0]: true_bits is missing",
                 [](Json& json) { json["pareto"][0].erase("true_bits"); });
  EXPECT_THROW(parse_preset("[]", "p"), FormatError);
  EXPECT_THROW(load_preset(test_path("absent.json")), IoError);
}

TEST(Preset, IsNotSavedWhenItCouldNotBeLoaded) {
  Preset preset = sample();
  preset.rank = 3;
  EXPECT_THROW(save_preset(preset, test_path("bad.json")), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(test_path("bad.json")));
}

TEST(Preset, SummarisesEveryLayerOfASpec) {
  const auto of = [](const char* spec) { return summarise_spec(parse_spec(spec), 8, 64); };
  EXPECT_EQ(of("v=pca48+int8").rank, 48);
  EXPECT_EQ(of("v=pca48+int8").bits, 8);
  EXPECT_EQ(of("v=pca48+int8").target, PresetTarget::kValues);
  EXPECT_EQ(of("k=nuq4-1%").target, PresetTarget::kKeys);
  EXPECT_EQ(of("k=nuq4-1%").bits, 4);
  EXPECT_EQ(of("k=nuq4-1%,v=had+nuq3").bits, 3);
  EXPECT_EQ(of("nuq4").rank, 64);
  EXPECT_EQ(of("v=int8,layers=2-3:nuq2").bits, 2);
  EXPECT_EQ(of("v=int8,layers=2-3:nuq2").target, PresetTarget::kBoth);
}

TEST(PresetName, StandsForALowRankSpec) {
  const auto of = [](const char* name) {
    const auto spec = spec_of_preset_name(name);
    return spec ? spec->text : "none";
  };
  EXPECT_EQ(of("r120-vonly"), "v=pca120");
  EXPECT_EQ(of("r96-vonly-int8"), "v=pca96+int8");
  EXPECT_EQ(of("r64-konly"), "k=pca64");
  EXPECT_EQ(of("r64-kv-int4"), "pca64+int4");
  for (const char* name : {"", "r", "r0-vonly", "r-1-vonly", "r064-kv", "r64", "r64-v", "r64-kv-",
                           "r64-kv-int3", "R64-kv", "r64-vonly "}) {
    EXPECT_EQ(of(name), "none") << name;
  }
}

}  // namespace
}  // namespace kvquant
