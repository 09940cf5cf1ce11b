// The spec grammar: a recursive-descent parser over one line of text, and the writer of the
// canonical form.
//
//   spec      = item {"," item}
//   item      = sided | "sink=" N | "recent=" N | "block=" N | "layers=" N ["-" N] ":" sided
//   sided     = ["k=" | "v="] codec
//   codec     = {transform "+"} quantizer | transform
//   transform = ("pca" | "pcaw") R | "lnns" | "had"
//   quantizer = "fp16" | "bf16" | "int8" | "int4" | ("nuq4" | "nuq3" | "nuq2") ["-" P "%"] | "wf"
//   BITS
#include "kvquant/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <stdexcept>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr size_t kMaxSpecLength = 65536;   // characters
constexpr int kMaxNumber = 1'000'000'000;  // sums of two still fit an int
constexpr int kMaxDecimals = 6;            // of percentages and bits
constexpr double kMaxOutlierPercent = 5;
constexpr double kMaxWaterfillBits = 8;
constexpr int kBlockUnit = 64;   // tokens: a tile
constexpr int kMaxBlock = 1024;  // tokens

struct NamedQuantizer {
  std::string_view name;
  Quantizer quantizer;
};
constexpr std::array<NamedQuantizer, 9> kQuantizers = {{{"fp32", Quantizer::kF32},
                                                        {"fp16", Quantizer::kF16},
                                                        {"bf16", Quantizer::kBF16},
                                                        {"int8", Quantizer::kInt8},
                                                        {"int4", Quantizer::kInt4},
                                                        {"nuq4", Quantizer::kNuq4},
                                                        {"nuq3", Quantizer::kNuq3},
                                                        {"nuq2", Quantizer::kNuq2},
                                                        {"wf", Quantizer::kWaterfill}}};

bool is_nuq(Quantizer q) {
  return q == Quantizer::kNuq4 || q == Quantizer::kNuq3 || q == Quantizer::kNuq2;
}

bool is_digit(char c) { return '0' <= c && c <= '9'; }

// For messages of one line: what can't be printed becomes '?', long texts are cut.
std::string quoted(std::string_view text) {
  constexpr size_t kShown = 100;
  std::string out = "\"";
  for (const char c : text.substr(0, kShown)) out += (c >= ' ' && c <= '~') ? c : '?';
  return out + (text.size() > kShown ? "...\"" : "\"");
}

// Without exponent, as short as possible: 1, 0.5, 3.25.
std::string decimal(double x) {
  std::array<char, 400> digits;
  const auto end =
      std::to_chars(digits.data(), digits.data() + digits.size(), x, std::chars_format::fixed);
  return {digits.data(), end.ptr};
}

class SpecParser {
 public:
  explicit SpecParser(std::string_view text) : text_(text) {}

  CacheSpec parse() {
    check_arg(text_.size() <= kMaxSpecLength,
              fmt::format("spec of {} characters is longer than {}", text_.size(), kMaxSpecLength));
    spec_.text = std::string(text_);
    do {
      parse_item();
    } while (accept(","));
    if (pos_ != text_.size()) fail(pos_, "expected \",\" or the end");
    return std::move(spec_);
  }

  // After parse(): plain items whose codec later ones replaced, as written.
  std::vector<std::string> replaced() const {
    std::vector<std::string> texts;
    for (const PlainItem& item : plain_items_) {
      if (!item.sets_key && !item.sets_value) texts.emplace_back(item.text);
    }
    return texts;
  }

 private:
  struct Sided {
    std::optional<Codec> key, value;
  };
  // An item of codecs without layers=, and what of it is in effect.
  struct PlainItem {
    std::string_view text;
    bool sets_key, sets_value;
  };

  [[noreturn]] void fail(size_t position, const std::string& rule) const {
    const std::string found =
        position < text_.size() ? quoted(text_.substr(position)) : std::string("the end");
    throw std::invalid_argument(fmt::format("spec {}: position {}: {}, found {}", quoted(text_),
                                            position + 1, rule, found));
  }

  bool accept(std::string_view token) {
    if (!text_.substr(pos_).starts_with(token)) return false;
    pos_ += token.size();
    return true;
  }

  int parse_number(const char* what, int min, int max) {
    const size_t start = pos_;
    while (pos_ < text_.size() && is_digit(text_[pos_])) ++pos_;
    int value = -1;
    const auto result = std::from_chars(text_.data() + start, text_.data() + pos_, value);
    if (start == pos_ || result.ec != std::errc() || value < min || value > max) {
      fail(start, fmt::format("expected {} from {} to {}", what, min, max));
    }
    return value;
  }

  // A decimal number in (0, max] of at most six decimals.
  double parse_decimal(const char* what, double max) {
    const size_t start = pos_;
    while (pos_ < text_.size() && is_digit(text_[pos_])) ++pos_;
    bool well_formed = pos_ > start;
    if (well_formed && accept(".")) {
      const size_t fraction = pos_;
      while (pos_ < text_.size() && is_digit(text_[pos_])) ++pos_;
      well_formed = pos_ > fraction && pos_ - fraction <= kMaxDecimals;
    }
    double value = 0;
    const auto result =
        std::from_chars(text_.data() + start, text_.data() + pos_, value, std::chars_format::fixed);
    if (!well_formed || result.ec != std::errc() || !(value > 0 && value <= max)) {
      fail(start, fmt::format("expected {} above 0 and up to {} with at most {} decimals", what,
                              max, kMaxDecimals));
    }
    return value;
  }

  void parse_item() {
    if (accept("sink=")) {
      spec_.sink = parse_number("a number of tokens", 0, kMaxNumber);
    } else if (accept("recent=")) {
      spec_.recent = parse_number("a number of tokens", 0, kMaxNumber);
    } else if (accept("block=")) {
      const size_t start = pos_;
      spec_.block = parse_number("a multiple of 64", kBlockUnit, kMaxBlock);
      if (spec_.block % kBlockUnit != 0) fail(start, "expected a multiple of 64 from 64 to 1024");
    } else if (accept("layers=")) {
      parse_layers();
    } else {
      const size_t start = pos_;
      const Sided sided =
          parse_sided("a codec, \"k=\", \"v=\", \"sink=\", \"recent=\", \"block=\" or \"layers=\"");
      if (sided.key) spec_.key = *sided.key;
      if (sided.value) spec_.value = *sided.value;
      for (PlainItem& item : plain_items_) {
        item.sets_key &= !sided.key;
        item.sets_value &= !sided.value;
      }
      plain_items_.push_back(
          {text_.substr(start, pos_ - start), sided.key.has_value(), sided.value.has_value()});
    }
  }

  void parse_layers() {
    LayerOverride range;
    range.first = range.last = parse_number("a layer", 0, kMaxNumber);
    if (accept("-")) range.last = parse_number("a layer", range.first, kMaxNumber);
    if (!accept(":")) fail(pos_, "expected \":\" and a codec after the layers");
    const Sided sided = parse_sided("a codec, \"k=\" or \"v=\"");
    range.key = sided.key;
    range.value = sided.value;
    spec_.overrides.push_back(std::move(range));
  }

  Sided parse_sided(const char* expected) {
    const bool key_only = accept("k=");
    const bool value_only = !key_only && accept("v=");
    const Codec codec = parse_codec(key_only || value_only ? "a codec" : expected);
    Sided sided;
    if (!value_only) sided.key = codec;
    if (!key_only) sided.value = codec;
    return sided;
  }

  Codec parse_codec(const char* expected) {
    Codec codec;
    while (auto step = parse_transform()) {
      codec.transforms.push_back(*step);
      if (!accept("+")) {
        if (codec.transforms.size() == 1) return codec;  // a bare transform: +fp16
        fail(pos_, "expected \"+\" and a quantizer after several transforms");
      }
      expected = "a transform or a quantizer (fp16, bf16, int8, int4, nuq4, nuq3, nuq2, wfBITS)";
    }
    parse_quantizer(expected, codec);
    return codec;
  }

  std::optional<TransformStep> parse_transform() {
    if (accept("lnns")) return TransformStep{Transform::kLnNullspace, 0};
    if (accept("had")) return TransformStep{Transform::kHadamard, 0};
    const bool weighted = accept("pcaw");
    if (!weighted && !accept("pca")) return std::nullopt;
    return TransformStep{weighted ? Transform::kPcaWeighted : Transform::kPca,
                         parse_number("a rank", 1, kMaxNumber)};
  }

  void parse_quantizer(const char* expected, Codec& codec) {
    const auto* const found = std::find_if(kQuantizers.begin(), kQuantizers.end(),
                                           [&](const auto& q) { return accept(q.name); });
    if (found == kQuantizers.end()) fail(pos_, fmt::format("expected {}", expected));
    codec.quantizer = found->quantizer;
    if (codec.quantizer == Quantizer::kWaterfill) {
      codec.waterfill_bits = parse_decimal("a number of bits", kMaxWaterfillBits);
    } else if (is_nuq(codec.quantizer) && accept("-")) {
      codec.outlier_percent = parse_decimal("a percentage", kMaxOutlierPercent);
      if (!accept("%")) fail(pos_, "expected \"%\" after the share of outliers");
    }
  }

  std::string_view text_;
  size_t pos_ = 0;
  CacheSpec spec_;
  std::vector<PlainItem> plain_items_;
};

std::string to_string(const TransformStep& step) {
  switch (step.kind) {
    case Transform::kPca: return fmt::format("pca{}", step.rank);
    case Transform::kPcaWeighted: return fmt::format("pcaw{}", step.rank);
    case Transform::kLnNullspace: return "lnns";
    case Transform::kHadamard: return "had";
  }
  return {};
}

// Calls fn("k" or "v", codec) for every codec that the spec names or implies.
template <class Fn>
void for_each_codec(const CacheSpec& spec, Fn&& fn) {
  fn("k", spec.key);
  fn("v", spec.value);
  for (const LayerOverride& item : spec.overrides) {
    if (item.key) fn("k", *item.key);
    if (item.value) fn("v", *item.value);
  }
}

void check_waterfill(const Codec& codec) {
  const bool has_pca = std::any_of(codec.transforms.begin(), codec.transforms.end(),
                                   [](const TransformStep& step) { return step.rank > 0; });
  check_arg(codec.quantizer != Quantizer::kWaterfill || has_pca,
            fmt::format("codec '{}': wf quantizes latents, put pcaR+ or pcawR+ before it",
                        to_string(codec)));
}

void check_codec_fits(const Codec& codec, int head_dim) {
  check_waterfill(codec);
  int width = head_dim;  // of the vector after the transforms so far
  for (const TransformStep& step : codec.transforms) {
    const std::string name = to_string(step);
    switch (step.kind) {
      case Transform::kPca:
      case Transform::kPcaWeighted:
        check_arg(step.rank <= width,
                  fmt::format("codec '{}': rank {} of {} is larger than the vector of {} values "
                              "(head_dim {})",
                              to_string(codec), step.rank, name, width, head_dim));
        width = step.rank;
        break;
      case Transform::kLnNullspace:
        check_arg(width >= 2, fmt::format("codec '{}': lnns needs at least 2 values, found {}",
                                          to_string(codec), width));
        --width;
        break;
      case Transform::kHadamard:
        check_arg((width & (width - 1)) == 0,
                  fmt::format("codec '{}': had needs a power of two, found {} values (head_dim {})",
                              to_string(codec), width, head_dim));
        break;
    }
  }
}

bool is_float(Quantizer q) {
  return q == Quantizer::kF32 || q == Quantizer::kF16 || q == Quantizer::kBF16;
}

bool is_coded(Quantizer q) { return is_nuq(q) || q == Quantizer::kInt8 || q == Quantizer::kInt4; }

// Of values: had alone, or one that makes latents and perhaps had behind it. Of keys: the latter,
// without weights.
bool is_built(std::string_view side, const Codec& codec) {
  if (codec.transforms.empty()) return is_float(codec.quantizer) || is_coded(codec.quantizer);
  const size_t count = codec.transforms.size();
  const Transform first = codec.transforms[0].kind;
  if (side == "k" && (first == Transform::kHadamard || first == Transform::kPcaWeighted)) {
    return false;
  }
  if (first == Transform::kHadamard) return count == 1 && is_coded(codec.quantizer);
  const bool is_chain = count == 2 && codec.transforms[1].kind == Transform::kHadamard;
  return (count == 1 || is_chain) &&
         (is_coded(codec.quantizer) || codec.quantizer == Quantizer::kF16 ||
          (codec.quantizer == Quantizer::kWaterfill && codec.transforms[0].rank > 0 && !is_chain));
}

}  // namespace

std::string to_string(const Codec& codec) {
  std::string out;
  for (const TransformStep& step : codec.transforms) out += to_string(step) + "+";
  const auto* const named =
      std::find_if(kQuantizers.begin(), kQuantizers.end(),
                   [&](const auto& q) { return q.quantizer == codec.quantizer; });
  out += named->name;
  if (codec.quantizer == Quantizer::kWaterfill) out += decimal(codec.waterfill_bits);
  if (codec.outlier_percent > 0) out += fmt::format("-{}%", decimal(codec.outlier_percent));
  return out;
}

bool is_compressed(const Codec& codec) {
  return !codec.transforms.empty() || !is_float(codec.quantizer);
}

const Codec& CacheSpec::key_of(int layer) const {
  for (auto item = overrides.rbegin(); item != overrides.rend(); ++item) {
    if (item->key && item->first <= layer && layer <= item->last) return *item->key;
  }
  return key;
}

const Codec& CacheSpec::value_of(int layer) const {
  for (auto item = overrides.rbegin(); item != overrides.rend(); ++item) {
    if (item->value && item->first <= layer && layer <= item->last) return *item->value;
  }
  return value;
}

CacheSpec parse_spec(std::string_view text) { return SpecParser(text).parse(); }

std::string resolved(const CacheSpec& spec) {
  std::string out = fmt::format("k={},v={},sink={},recent={},block={}", to_string(spec.key),
                                to_string(spec.value), spec.sink.value_or(0),
                                spec.recent.value_or(0), spec.block);
  for (const LayerOverride& item : spec.overrides) {
    const std::string layers = item.first == item.last
                                   ? fmt::format(",layers={}:", item.first)
                                   : fmt::format(",layers={}-{}:", item.first, item.last);
    if (item.key && item.value && *item.key == *item.value) {
      out += layers + to_string(*item.key);
      continue;
    }
    if (item.key) out += layers + "k=" + to_string(*item.key);
    if (item.value) out += layers + "v=" + to_string(*item.value);
  }
  return out;
}

void check_spec_fits(const CacheSpec& spec, int num_layers, int head_dim) {
  for_each_codec(spec, [&](const char*, const Codec& codec) { check_codec_fits(codec, head_dim); });
  for (const LayerOverride& item : spec.overrides) {
    check_arg(item.last < num_layers,
              fmt::format("spec {}: layers={}-{} is past the last layer {}", quoted(spec.text),
                          item.first, item.last, num_layers - 1));
  }
}

std::vector<std::string> spec_warnings(const CacheSpec& spec) {
  std::vector<std::string> warnings;
  for_each_codec(spec, [&](std::string_view side, const Codec& codec) {
    if (side != "k" || codec.transforms.empty()) return;
    std::string warning = fmt::format(
        "k={}: a transform of keys usually costs far more quality than one of values; compare with "
        "v={}",
        to_string(codec), to_string(codec));
    if (std::find(warnings.begin(), warnings.end(), warning) == warnings.end()) {
      warnings.push_back(std::move(warning));
    }
  });
  if (spec.text.empty()) return warnings;
  SpecParser parser(spec.text);
  parser.parse();
  for (const std::string& item : parser.replaced()) {
    warnings.push_back(fmt::format(
        "spec {}: {} has no effect, later items replace it; specs to compare are options of their "
        "own",
        quoted(spec.text), item));
  }
  return warnings;
}

void check_spec_built(const CacheSpec& spec) {
  for_each_codec(spec, [](const char* side, const Codec& codec) {
    check_waterfill(codec);
    check_arg(
        is_built(side, codec),
        fmt::format("codec '{}' is not built yet for {}; built: fp32, fp16, bf16, int8, int4, "
                    "nuq4, nuq3, nuq2, nuq4-P%, nuq3-P%, nuq2-P%, pcaR or lnns, with +had if "
                    "wanted, and fp16 or one of int and nuq, and pcaR+wfBITS; for values also "
                    "pcawR likewise, and had+ and one of int and nuq",
                    to_string(codec), side[0] == 'k' ? "keys" : "values"));
  });
}

}  // namespace kvquant
