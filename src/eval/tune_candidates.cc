#include "eval/tune_candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/quote.h"

namespace kvquant {
namespace {

std::string spec_text(const CandidateOptions& options, const std::string& key,
                      const std::string& value) {
  std::vector<std::string> items;
  if (options.target != PresetTarget::kValues) items.push_back("k=" + key);
  if (options.target != PresetTarget::kKeys) items.push_back("v=" + value);
  if (options.sink) items.push_back(fmt::format("sink={}", *options.sink));
  if (options.recent) items.push_back(fmt::format("recent={}", *options.recent));
  return fmt::format("{}", fmt::join(items, ","));
}

std::string quantizer_of(int64_t bits) {
  switch (bits) {
    case 16: return "";
    case 8: return "+int8";
    case 4: return "+int4";
    default: break;
  }
  throw std::invalid_argument(fmt::format("tune: latents of {} bits: expected 16, 8 or 4", bits));
}

std::string codec_text(const CandidateOptions& options, const std::string& codec) {
  const size_t slash = codec.find('/');
  if (slash == std::string::npos) return spec_text(options, codec, codec);
  check_arg(options.target == PresetTarget::kBoth,
            "tune: the codecs " + quote(codec) + " are of keys and values, but the target is " +
                std::string(to_string(options.target)));
  return spec_text(options, codec.substr(0, slash), codec.substr(slash + 1));
}

}  // namespace

std::vector<int64_t> default_rank_grid(int64_t head_dim) {
  std::vector<int64_t> ranks;
  for (const double divisor : {1.0, 1.1, 1.2, 1.33, 1.5, 1.6, 2.0}) {
    const int64_t rank =
        std::max<int64_t>(1, std::llround(static_cast<double>(head_dim) / divisor));
    if (ranks.empty() || ranks.back() != rank) ranks.push_back(rank);
  }
  return ranks;
}

std::vector<CacheSpec> tune_candidates(const CandidateOptions& options, int64_t num_layers,
                                       int64_t head_dim) {
  std::vector<std::string> texts;
  const auto ranks = options.ranks.empty() ? default_rank_grid(head_dim) : options.ranks;
  for (const int64_t rank : ranks) {
    check_arg(1 <= rank && rank <= head_dim,
              fmt::format("tune: rank {} is not in [1, {}], the model's head_dim", rank, head_dim));
    for (const int64_t bits : options.bits) {
      const std::string codec = fmt::format("pca{}{}", rank, quantizer_of(bits));
      texts.push_back(spec_text(options, codec, codec));
    }
  }
  for (const std::string& codec : options.codecs) texts.push_back(codec_text(options, codec));
  texts.insert(texts.end(), options.specs.begin(), options.specs.end());
  std::vector<CacheSpec> out;
  for (const std::string& text : texts) {
    CacheSpec spec = parse_spec(text);
    check_spec_fits(spec, static_cast<int>(num_layers), static_cast<int>(head_dim));
    check_spec_built(spec);
    const bool is_known = std::any_of(out.begin(), out.end(), [&](const CacheSpec& other) {
      return resolved(other) == resolved(spec);
    });
    if (!is_known) out.push_back(std::move(spec));
  }
  check_arg(!out.empty(), "tune: there is nothing to try");
  return out;
}

}  // namespace kvquant
