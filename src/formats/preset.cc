// Reads and writes presets. Every string of a file may be shown on a terminal, so none may hold
// control characters.
#include "kvquant/preset.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <stdexcept>

#include "base/check.h"
#include "base/file.h"
#include "base/quote.h"
#include "formats/codec_table.h"
#include "formats/json_fields.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int64_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxText = 4096, kMaxPareto = 1000;
constexpr int64_t kMaxHeadDim = 1024, kMaxLayers = 4096;
constexpr double kMaxRatio = 1e3, kMaxPerplexity = 1e300;

constexpr std::array kFields = {"model",
                                "model_fingerprint",
                                "version",
                                "name",
                                "spec",
                                "spec_resolved",
                                "head_dim",
                                "num_layers",
                                "rank",
                                "target",
                                "bits",
                                "compression_ratio",
                                "side_compression",
                                "total_compression",
                                "baseline_ppl",
                                "compressed_ppl",
                                "ppl_delta",
                                "ppl_delta_low",
                                "ppl_delta_high",
                                "kl_divergence",
                                "top1_agreement",
                                "true_bits",
                                "target_ppl_delta",
                                "selection_ppl_delta",
                                "window",
                                "eval_tokens",
                                "pareto",
                                "eval_text",
                                "eval_begin",
                                "eval_text_sha256",
                                "calibration_file",
                                "made_by"};
constexpr std::array kParetoFields = {"spec", "true_bits", "ppl_delta", "kl_divergence"};

// One object of the file; `where` begins every message.
class Reader {
 public:
  Reader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  [[noreturn]] void fail(const std::string& what) const { throw FormatError(where_ + ": " + what); }

  template <size_t N>
  void expect_only(const std::array<const char*, N>& known) const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        fail("the field " + quote(key) + " is unknown");
      }
    }
  }

  std::string text(const char* key) const {
    std::string out = json_text(object_, key, where_).value_or("");
    if (out.size() > kMaxText) fail(fmt::format("{} has {} bytes", key, out.size()));
    const bool is_plain = std::none_of(out.begin(), out.end(), [](char c) {
      return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    });
    if (!is_plain) fail(fmt::format("{} {} has control characters", key, quote(out)));
    return out;
  }
  std::string require_text(const char* key) const {
    std::string out = text(key);
    if (out.empty()) fail(std::string(key) + " is missing");
    return out;
  }
  int64_t integer(const char* key, int64_t least, int64_t most) const {
    const int64_t out = json_integer(object_, key, where_).value_or(least);
    if (out < least || out > most) {
      fail(fmt::format("{} is {}, not in [{}, {}]", key, out, least, most));
    }
    return out;
  }
  int64_t require_integer(const char* key, int64_t least, int64_t most) const {
    kvquant::require_integer(object_, key, where_);
    return integer(key, least, most);
  }
  std::optional<double> number(const char* key, double least, double most) const {
    const auto out = json_number(object_, key, where_);
    if (out && !(least <= *out && *out <= most)) {
      fail(fmt::format("{} is {}, not in [{}, {}]", key, *out, least, most));
    }
    return out;
  }
  double require_number(const char* key, double least, double most) const {
    const auto out = number(key, least, most);
    if (!out) fail(std::string(key) + " is missing");
    return *out;
  }
  CacheSpec require_spec() const {
    try {
      return parse_spec(require_text("spec"));
    } catch (const std::invalid_argument& error) {
      fail(error.what());
    }
  }

 private:
  const Json& object_;
  std::string where_;
};

std::vector<ParetoPoint> read_pareto(const Json& json, const std::string& path) {
  const auto found = json.find("pareto");
  if (found == json.end() || found->is_null()) return {};
  if (!found->is_array() || found->size() > kMaxPareto) {
    throw FormatError(
        fmt::format("{}: pareto is no list of at most {} settings", path, kMaxPareto));
  }
  std::vector<ParetoPoint> out;
  for (const Json& entry : *found) {
    const std::string where = fmt::format("{}: pareto[{}]", path, out.size());
    if (!entry.is_object()) throw FormatError(where + " is not an object");
    const Reader reader(entry, where);
    reader.expect_only(kParetoFields);
    reader.require_spec();
    out.push_back({.spec = reader.require_text("spec"),
                   .true_bits = reader.require_number("true_bits", 0, kMaxRatio),
                   .ppl_delta = reader.require_number("ppl_delta", -1, kMaxPerplexity),
                   .kl_divergence = reader.require_number("kl_divergence", 0, kMaxPerplexity)});
  }
  return out;
}

void read_figures(const Reader& reader, Preset& out) {
  out.compression_ratio = reader.number("compression_ratio", 0, kMaxRatio).value_or(0);
  out.side_compression = reader.number("side_compression", 0, kMaxRatio).value_or(0);
  const auto total = reader.number("total_compression", 0, kMaxRatio);
  if (total && *total != out.compression_ratio) {
    reader.fail(fmt::format("total_compression is {}, compression_ratio {}: they are the same",
                            *total, out.compression_ratio));
  }
  out.baseline_ppl = reader.number("baseline_ppl", 1, kMaxPerplexity);
  out.compressed_ppl = reader.number("compressed_ppl", 1, kMaxPerplexity);
  out.ppl_delta = reader.number("ppl_delta", -1, kMaxPerplexity);
  out.ppl_delta_low = reader.number("ppl_delta_low", -1, kMaxPerplexity);
  out.ppl_delta_high = reader.number("ppl_delta_high", -1, kMaxPerplexity);
  out.kl_divergence = reader.number("kl_divergence", 0, kMaxPerplexity);
  out.top1_agreement = reader.number("top1_agreement", 0, 1);
  out.true_bits = reader.number("true_bits", 0, kMaxRatio);
  out.target_ppl_delta = reader.number("target_ppl_delta", 0, kMaxPerplexity);
  out.selection_ppl_delta = reader.number("selection_ppl_delta", -1, kMaxPerplexity);
  out.window = reader.integer("window", 0, int64_t{1} << 40);
  out.eval_tokens = reader.integer("eval_tokens", 0, int64_t{1} << 40);
  out.eval_text = reader.text("eval_text");
  out.eval_begin = reader.integer("eval_begin", 0, int64_t{1} << 40);
  out.eval_text_sha256 = reader.text("eval_text_sha256");
  const bool is_hex =
      std::all_of(out.eval_text_sha256.begin(), out.eval_text_sha256.end(),
                  [](char c) { return ('0' <= c && c <= '9') || ('a' <= c && c <= 'f'); });
  if (!out.eval_text_sha256.empty() && (out.eval_text_sha256.size() != 64 || !is_hex)) {
    reader.fail("eval_text_sha256 " + quote(out.eval_text_sha256) + " is not 64 hex digits");
  }
}

int64_t stored_bits(const Codec& codec) {
  if (codec.quantizer == Quantizer::kWaterfill) {
    return std::max<int64_t>(1, std::llround(codec.waterfill_bits));
  }
  const int bits = code_bits(codec.quantizer);
  return bits == 0 ? 16 : bits;
}

// rank, target and bits: what the spec says, written out for those who don't read specs.
void read_summary(const Json& json, const Reader& reader, const CacheSpec& spec, Preset& out) {
  const SpecSummary summary = summarise_spec(spec, out.num_layers, out.head_dim);
  out.rank = summary.rank;
  out.target = summary.target;
  out.bits = summary.bits;
  const auto expect = [&](const char* key, int64_t value) {
    if (json.contains(key) && reader.integer(key, 0, kMaxHeadDim) != value) {
      reader.fail(fmt::format("{} is {}, but the spec {} has {}", key,
                              reader.integer(key, 0, kMaxHeadDim), quote(out.spec), value));
    }
  };
  expect("rank", summary.rank);
  expect("bits", summary.bits);
  const std::string target = reader.text("target");
  if (!target.empty() && target != to_string(summary.target)) {
    reader.fail(fmt::format("target is {}, but the spec {} compresses {}", quote(target),
                            quote(out.spec), to_string(summary.target)));
  }
  const std::string canonical = reader.text("spec_resolved");
  if (!canonical.empty() && canonical != resolved(spec)) {
    reader.fail(fmt::format("spec_resolved is {}, but the spec {} means {}", quote(canonical),
                            quote(out.spec), resolved(spec)));
  }
}

}  // namespace

std::string_view to_string(PresetTarget target) {
  switch (target) {
    case PresetTarget::kValues: return "v";
    case PresetTarget::kKeys: return "k";
    case PresetTarget::kBoth: return "kv";
  }
  return "";
}

PresetTarget parse_preset_target(std::string_view name) {
  for (const auto target : {PresetTarget::kValues, PresetTarget::kKeys, PresetTarget::kBoth}) {
    if (to_string(target) == name) return target;
  }
  throw std::invalid_argument("target " + quote(name) + ": expected v, k or kv");
}

SpecSummary summarise_spec(const CacheSpec& spec, int64_t num_layers, int64_t head_dim) {
  bool keys = false, values = false;
  for (int layer = 0; layer < num_layers; ++layer) {
    keys = keys || is_compressed(spec.key_of(layer));
    values = values || is_compressed(spec.value_of(layer));
  }
  SpecSummary out;
  out.rank = head_dim;
  if (keys != values) out.target = keys ? PresetTarget::kKeys : PresetTarget::kValues;
  for (int layer = 0; layer < num_layers; ++layer) {
    const Codec& codec = values ? spec.value_of(layer) : spec.key_of(layer);
    out.rank = std::min(out.rank, latent_rank(codec, head_dim));
    out.bits = std::min(out.bits, stored_bits(codec));
  }
  return out;
}

Preset parse_preset(const std::string& text, const std::string& path) {
  const Json json = parse_json_object(text, path);
  const Reader reader(json, path);
  reader.expect_only(kFields);
  Preset out;
  out.path = path;
  reader.require_integer("version", kPresetVersion, kPresetVersion);
  out.model = reader.require_text("model");
  out.model_fingerprint = reader.text("model_fingerprint");
  out.name = reader.text("name");
  if (out.name.empty()) out.name = std::filesystem::path(path).stem().string();
  out.head_dim = reader.require_integer("head_dim", 1, kMaxHeadDim);
  out.num_layers = reader.require_integer("num_layers", 1, kMaxLayers);
  const CacheSpec spec = reader.require_spec();
  out.spec = spec.text;
  try {
    check_spec_fits(spec, static_cast<int>(out.num_layers), static_cast<int>(out.head_dim));
  } catch (const std::invalid_argument& error) {
    reader.fail(error.what());
  }
  read_summary(json, reader, spec, out);
  read_figures(reader, out);
  out.pareto = read_pareto(json, path);
  out.calibration_file = reader.text("calibration_file");
  out.made_by = reader.text("made_by");
  return out;
}

Preset load_preset(const std::string& path) {
  return parse_preset(read_text(path, kMaxFileBytes), path);
}

std::string preset_json(const Preset& preset) {
  using Ordered = nlohmann::ordered_json;
  const auto or_null = [](const std::optional<double>& x) { return x ? Ordered(*x) : Ordered(); };
  const auto text_or_null = [](const std::string& x) { return x.empty() ? Ordered() : Ordered(x); };
  Ordered pareto = Ordered::array();
  for (const ParetoPoint& point : preset.pareto) {
    pareto.push_back({{"spec", point.spec},
                      {"true_bits", point.true_bits},
                      {"ppl_delta", point.ppl_delta},
                      {"kl_divergence", point.kl_divergence}});
  }
  const Ordered json = {{"model", preset.model},
                        {"model_fingerprint", text_or_null(preset.model_fingerprint)},
                        {"version", preset.version},
                        {"name", preset.name},
                        {"spec", preset.spec},
                        {"spec_resolved", resolved(parse_spec(preset.spec))},
                        {"head_dim", preset.head_dim},
                        {"num_layers", preset.num_layers},
                        {"rank", preset.rank},
                        {"target", to_string(preset.target)},
                        {"bits", preset.bits},
                        {"compression_ratio", preset.compression_ratio},
                        {"side_compression", preset.side_compression},
                        {"total_compression", preset.compression_ratio},
                        {"true_bits", or_null(preset.true_bits)},
                        {"baseline_ppl", or_null(preset.baseline_ppl)},
                        {"compressed_ppl", or_null(preset.compressed_ppl)},
                        {"ppl_delta", or_null(preset.ppl_delta)},
                        {"ppl_delta_low", or_null(preset.ppl_delta_low)},
                        {"ppl_delta_high", or_null(preset.ppl_delta_high)},
                        {"kl_divergence", or_null(preset.kl_divergence)},
                        {"top1_agreement", or_null(preset.top1_agreement)},
                        {"target_ppl_delta", or_null(preset.target_ppl_delta)},
                        {"selection_ppl_delta", or_null(preset.selection_ppl_delta)},
                        {"window", preset.window},
                        {"eval_tokens", preset.eval_tokens},
                        {"eval_text", text_or_null(preset.eval_text)},
                        {"eval_begin", preset.eval_begin},
                        {"eval_text_sha256", text_or_null(preset.eval_text_sha256)},
                        {"calibration_file", text_or_null(preset.calibration_file)},
                        {"pareto", pareto},
                        {"made_by", text_or_null(preset.made_by)}};
  return json.dump(2, ' ', false, Ordered::error_handler_t::replace) + "\n";
}

void save_preset(const Preset& preset, const std::string& path) {
  const std::string text = preset_json(preset);
  try {
    parse_preset(text, path);
  } catch (const FormatError& error) {
    throw std::invalid_argument(std::string("preset: ") + error.what());
  }
  write_file_atomic(path, text);
}

std::string calibration_path(const Preset& preset) {
  if (preset.calibration_file.empty()) return "";
  return (std::filesystem::path(preset.path).parent_path() / preset.calibration_file).string();
}

std::optional<CacheSpec> spec_of_preset_name(std::string_view name) {
  if (name.empty() || name[0] != 'r') return std::nullopt;
  int rank = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + 1, end, rank);
  if (error != std::errc() || rank < 1 || name[1] == '0') return std::nullopt;
  const std::string_view rest(stop, static_cast<size_t>(end - stop));
  for (const char* bits : {"", "+int8", "+int4"}) {
    const std::string codec = fmt::format("pca{}{}", rank, bits);
    const std::string suffix = *bits == '\0' ? "" : "-" + std::string(bits + 1);
    if (rest == "-vonly" + suffix) return parse_spec("v=" + codec);
    if (rest == "-konly" + suffix) return parse_spec("k=" + codec);
    if (rest == "-kv" + suffix) return parse_spec(codec);
  }
  return std::nullopt;
}

}  // namespace kvquant
