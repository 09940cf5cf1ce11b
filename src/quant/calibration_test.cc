#include "quant/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "base/file.h"
#include "base/test_path.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"
#include "quant/calibration_test_data.h"

namespace kvquant {
namespace {

using test::test_path;

std::string saved_bytes(const Calibration& calibration, const std::string& name) {
  save_calibration(calibration, test_path(name));
  std::string bytes = read_text(test_path(name));
  std::filesystem::remove(test_path(name));
  return bytes;
}

Calibration parse(const std::string& bytes) {
  return parse_calibration(std::as_bytes(std::span(bytes.data(), bytes.size())), "some.file");
}

// A safetensors file taken apart.
struct Parts {
  Json header;
  std::string data;

  explicit Parts(const std::string& bytes) {
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), 8);
    header = Json::parse(bytes.substr(8, size));
    data = bytes.substr(8 + size);
  }
  std::string bytes() const {
    const std::string text = header.dump();
    const uint64_t size = text.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + text + data;
  }
  template <class T>
  void set(const std::string& tensor, size_t index, T value) {
    const auto begin = header.at(tensor).at("data_offsets").at(0).get<size_t>();
    std::memcpy(data.data() + begin + index * sizeof(T), &value, sizeof(T));
  }
};

const FitChoices kPerHead{.codebooks = CodebookScope::kHead};

// The message with which a file is refused after `edit`.
std::string refusal(const std::function<void(Parts&)>& edit, const FitChoices& choices = {}) {
  const std::string bytes = saved_bytes(test_calibration({2, 4, 2, 8}, choices), "refusal");
  Parts parts(bytes);
  edit(parts);
  try {
    parse(parts.bytes());
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

void expect_refused(const std::string& part, const std::function<void(Parts&)>& edit,
                    const FitChoices& choices = {}) {
  const std::string message = refusal(edit, choices);
  EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected: " << part;
  EXPECT_EQ(message.rfind("some.file", 0), 0u) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(CalibrationFile, ComesBackAsItWasWritten) {
  const Calibration out = test_calibration();
  const std::string bytes = saved_bytes(out, "round_trip");
  EXPECT_EQ(saved_bytes(out, "again"), bytes);
  const Calibration in = parse(bytes);
  EXPECT_EQ(in.path, "some.file");
  EXPECT_EQ(in.info.shape, out.info.shape);
  EXPECT_EQ(in.info.model_fingerprint, out.info.model_fingerprint);
  EXPECT_EQ(in.info.kvquant_version, "test");
  EXPECT_EQ(in.info.seed, out.info.seed);
  EXPECT_EQ(in.info.num_samples, 2);
  EXPECT_EQ(in.info.seq_len, 20);
  EXPECT_EQ(in.info.rank, 5);
  ASSERT_EQ(in.info.texts.size(), 2u);
  EXPECT_EQ(in.info.texts[1].file, "b.txt");
  EXPECT_EQ(in.info.texts[1].begin, 40);
  EXPECT_EQ(in.info.texts[1].end, 60);
  EXPECT_EQ(in.info.texts[0].hash, "00112233445566ff");
  ASSERT_EQ(in.layers.size(), 2u);
  EXPECT_EQ(in.layers[1].key.scale, out.layers[1].key.scale);
  EXPECT_EQ(in.layers[1].key.codebooks, out.layers[1].key.codebooks);
  EXPECT_EQ(in.layers[0].value.weighted_decode, out.layers[0].value.weighted_decode);
  EXPECT_EQ(in.layers[0].query.gram, out.layers[0].query.gram);
  EXPECT_EQ(saved_bytes(in, "copy"), bytes);  // all the other fields
  EXPECT_EQ(memory_bytes(in), memory_bytes(out));
  EXPECT_GT(memory_bytes(in), static_cast<int64_t>(bytes.size()) / 2);
}

TEST(CalibrationFile, HoldsACodebookPerHead) {
  const CalibrationShape shape{2, 6, 3, 8};
  const Calibration out = test_calibration(shape, kPerHead);
  const std::string bytes = saved_bytes(out, "per_head");
  const Parts parts(bytes);
  EXPECT_EQ(parts.header["__metadata__"]["format_version"], "2");
  EXPECT_EQ(parts.header["__metadata__"]["codebooks"], "head");
  EXPECT_EQ(parts.header["layers.1.key.codebook3"]["shape"], Json({8, 3, 8}));
  const Calibration in = parse(bytes);
  EXPECT_EQ(in.info.codebooks, CodebookScope::kHead);
  ASSERT_EQ(in.layers[1].value.hadamard_codebooks[2].size(), 8u * 3 * 16);
  EXPECT_EQ(in.layers[1].value.hadamard_codebooks, out.layers[1].value.hadamard_codebooks);
  EXPECT_EQ(in.layers[0].key.codebooks, out.layers[0].key.codebooks);
  EXPECT_EQ(saved_bytes(in, "per_head"), bytes);
  EXPECT_EQ(calibration_hash(in), calibration_hash(out));
  const Calibration layer = test_calibration(shape);
  EXPECT_NE(calibration_hash(in), calibration_hash(layer));
  // 9 codebooks of 8 percents in 2 layers, twice more of each: 4 + 8 + 16 levels for 3 bit widths.
  EXPECT_EQ(memory_bytes(in) - memory_bytes(layer), 2 * 2 * 3 * 8 * (4 + 8 + 16) * 4);
}

// So that versions before codebooks per head read them, and this one reads theirs.
TEST(CalibrationFile, WithACodebookPerLayerIsOfVersionOne) {
  const Parts parts(saved_bytes(test_calibration(), "version"));
  EXPECT_EQ(parts.header["__metadata__"]["format_version"], "1");
  EXPECT_FALSE(parts.header["__metadata__"].contains("codebooks"));
  EXPECT_EQ(refusal([](Parts& p) {
              p.header["__metadata__"]["format_version"] = "2";
              p.header["__metadata__"]["codebooks"] = "layer";
            }),
            "accepted");
}

TEST(CalibrationFile, OfCodebooksPerHeadIsRefusedWhenTheyAreOfAnotherShape) {
  const auto with_shape = [](const std::vector<int64_t>& shape) {
    return [=](Parts& p) { p.header["layers.1.value.codebook2"]["shape"] = shape; };
  };
  const std::string tensor = "tensor \"layers.1.value.codebook2\": F32 ";
  expect_refused(tensor + "[8, 8], expected F32 [8, 2, 4]", with_shape({8, 8}), kPerHead);
  expect_refused(tensor + "[8, 4, 2], expected F32 [8, 2, 4]", with_shape({8, 4, 2}), kPerHead);
  expect_refused(tensor + "[8, 1, 4], expected F32 [8, 4]", with_shape({8, 1, 4}));
  const auto with = [](const char* key, const char* value) {
    return [=](Parts& p) { p.header["__metadata__"][key] = value; };
  };
  expect_refused("F32 [8, 2, 4], expected F32 [8, 4]", with("codebooks", "layer"), kPerHead);
  expect_refused("F32 [8, 2, 4], expected F32 [8, 4]", with("format_version", "1"), kPerHead);
  expect_refused("codebooks \"channel\": expected layer or head", with("codebooks", "channel"),
                 kPerHead);
  expect_refused("the metadata have no codebooks", with("format_version", "2"));
  // Element 13 is the last level of the second head's second percent.
  expect_refused(
      "tensor \"layers.0.key.codebook2\": ",
      [](Parts& p) { p.set("layers.0.key.codebook2", 13, -2.0f); }, kPerHead);
}

TEST(CalibrationFile, IsRefusedWithTheTensorAndTheRuleItBreaks) {
  EXPECT_EQ(refusal([](Parts&) {}), "accepted");
  expect_refused("tensor \"layers.1.key.scale3\": F32 [8, 2, 4], expected F16 [8, 2, 8]",
                 [](Parts& p) {
                   p.header["layers.1.key.scale3"]["dtype"] = "F32";
                   p.header["layers.1.key.scale3"]["shape"] = {8, 2, 4};
                 });
  expect_refused("tensor \"layers.0.value.basis\": F32 [2, 8, 5]", [](Parts& p) {
    p.header["layers.0.value.basis"]["shape"] = {2, 8, 5};
  });
  expect_refused("tensor \"layers.0.key.mean\" is missing", [](Parts& p) {
    p.header["layers.0.key.another"] = p.header["layers.0.key.mean"];
    p.header.erase("layers.0.key.mean");
  });
  expect_refused("tensors, ", [](Parts& p) {
    p.header["more"] = {
        {"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {p.data.size(), p.data.size()}}};
  });
  expect_refused("tensor \"layers.1.query.gram\": element 3 is inf",
                 [](Parts& p) { p.set("layers.1.query.gram", 3, INFINITY); });
  expect_refused("tensor \"layers.1.key.zero2\": element 2 is nan",
                 [](Parts& p) { p.set("layers.1.key.zero2", 2, Half{0x7E00}); });
  expect_refused("tensor \"layers.0.value.codebook3\": ",
                 [](Parts& p) { p.set("layers.0.value.codebook3", 7, -0.5f); });
  expect_refused("tensor \"layers.0.key.feedback\": 1e+30 is too large",
                 [](Parts& p) { p.set("layers.0.key.feedback", 9, 1e30f); });
  expect_refused("tensor \"layers.0.key.scale4\": a scale is negative",
                 [](Parts& p) { p.set("layers.0.key.scale4", 5, to_half(-1.0f)); });
  expect_refused("tensor \"layers.0.key.low2\": element 5 is larger than high",
                 [](Parts& p) { p.set("layers.0.key.low2", 5, to_half(60000.0f)); });
}

TEST(CalibrationFile, IsRefusedWithTheMetadataThatAreWrong) {
  const auto with = [](const char* key, const char* value) {
    return [=](Parts& p) { p.header["__metadata__"][key] = value; };
  };
  expect_refused("not a calibration file", [](Parts& p) { p.header.erase("__metadata__"); });
  expect_refused("no model_fingerprint",
                 [](Parts& p) { p.header["__metadata__"].erase("model_fingerprint"); });
  for (const char* number : {"4", "0", "-1", "", "1 "}) {
    expect_refused("format_version", with("format_version", number));
  }
  expect_refused("not a calibration file", with("format", "pt"));
  expect_refused("outlier_percents", with("outlier_percents", "0 1"));
  expect_refused("layers.2.key.mean", with("num_layers", "3"));
  expect_refused("tensors, ", with("num_layers", "1"));
  for (const char* number : {"-1", "0", "x", "", "2 ", "9999999999999999999", "99999"}) {
    expect_refused("num_layers", with("num_layers", number));
    expect_refused("num_kv_heads", with("num_kv_heads", number));
    expect_refused("head_dim", with("head_dim", number));
    expect_refused("rank", with("rank", number));
  }
  expect_refused("seed", with("seed", "-1"));
  expect_refused("texts", with("texts", "{"));
  expect_refused("texts", with("texts", R"({"samples": 3})"));
  expect_refused("texts", with("texts", R"({"samples": [3]})"));
  expect_refused("texts", with("texts", R"({"samples": [{"begin": 5, "end": 2}]})"));
  expect_refused("texts", with("texts", R"({"samples": [{"begin": 5}]})"));
}

TEST(CalibrationFile, EveryTruncationIsRefused) {
  const std::string bytes = saved_bytes(test_calibration({1, 1, 1, 8}), "truncated");
  for (size_t size = 0; size < bytes.size(); size += 1 + size / 50) {
    EXPECT_THROW(parse(bytes.substr(0, size)), FormatError) << size;
  }
}

TEST(CalibrationFile, ThatIsMissingOrNoFileIsSaid) {
  try {
    load_calibration("no/such/file.safetensors");
    FAIL();
  } catch (const IoError& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.rfind("Calibration file not found: no/such/file.safetensors", 0), 0u);
    EXPECT_NE(message.find("full path"), std::string::npos);
  }
  EXPECT_THROW(load_calibration(testing::TempDir()), IoError);
}

TEST(CalibrationFile, ArraysOfAnotherSizeAreNotWritten) {
  Calibration calibration = test_calibration();
  calibration.layers[1].value.spectrum.pop_back();
  EXPECT_THROW(save_calibration(calibration, test_path("bad")), std::invalid_argument);
  calibration = test_calibration();
  calibration.layers.pop_back();
  EXPECT_THROW(save_calibration(calibration, test_path("bad")), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(test_path("bad")));
}

TEST(CodebookScope, IsReadBackFromItsName) {
  for (const CodebookScope scope : {CodebookScope::kLayer, CodebookScope::kHead}) {
    EXPECT_EQ(parse_codebook_scope(to_string(scope)), scope);
  }
  EXPECT_THROW(parse_codebook_scope("heads"), std::invalid_argument);
}

TEST(CalibrationFit, AnotherModelIsRefused) {
  Calibration calibration = test_calibration();
  calibration.path = "c.safetensors";
  check_calibration_fits(calibration, "0123456789abcdef", {2, 4, 2, 8});
  for (const auto& [fingerprint, shape] :
       {std::pair<std::string, CalibrationShape>{"0123456789abcdee", {2, 4, 2, 8}},
        {"0123456789abcdef", {3, 4, 2, 8}},
        {"0123456789abcdef", {2, 4, 4, 8}}}) {
    try {
      check_calibration_fits(calibration, fingerprint, shape);
      FAIL();
    } catch (const std::invalid_argument& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.rfind("calibration c.safetensors was made for another model (", 0), 0u)
          << message;
      EXPECT_NE(message.find(fingerprint), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace kvquant
