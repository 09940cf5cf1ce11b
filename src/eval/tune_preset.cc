#include "eval/tune_preset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "base/sha256.h"
#include "quant/compact_calibration.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr double kFp16Bits = 16;

void add_figures(Preset& preset, const CandidateScore& winner) {
  preset.compression_ratio = kFp16Bits / winner.true_bits;
  if (preset.target == PresetTarget::kBoth) preset.side_compression = preset.compression_ratio;
  preset.baseline_ppl = winner.baseline;
  preset.compressed_ppl = winner.perplexity;
  preset.ppl_delta = winner.ppl_delta;
  preset.ppl_delta_low = winner.ppl_delta_low;
  preset.ppl_delta_high = winner.ppl_delta_high;
  preset.kl_divergence = winner.kl_mean;
  preset.top1_agreement = winner.top1_agreement;
  preset.true_bits = winner.true_bits;
  preset.eval_tokens = winner.tokens;
}

}  // namespace

Preset tuned_preset(const TuneResult& result, const TuneTexts& texts,
                    const TunePresetOptions& options) {
  check_arg(result.winner.has_value(), "tune: nothing was found to make a preset of");
  const CandidateScore& winner = result.measured[*result.winner];
  Preset preset;
  preset.spec = winner.spec.text;
  describe_preset(preset, options.model);
  preset.name = options.name;
  add_figures(preset, winner);
  preset.target_ppl_delta = options.target_ppl_delta;
  for (const CandidateScore& score : result.candidates) {
    if (resolved(score.spec) == resolved(winner.spec)) preset.selection_ppl_delta = score.ppl_delta;
  }
  preset.window = options.window;
  preset.eval_text = fs::path(texts.test_file).filename().string();
  preset.eval_begin = texts.test_begin;
  preset.eval_text_sha256 = sha256_hex(read_text(texts.test_file));
  for (const CandidateScore& score : result.measured) {
    preset.pareto.push_back({score.spec.text, score.true_bits, score.ppl_delta, score.kl_mean});
  }
  preset.made_by = "kvquant tune " + options.program.substr(0, options.program.find(' '));
  return preset;
}

void save_tuned_preset(Preset& preset, const Calibration* calibration, const std::string& path) {
  const CacheSpec spec = parse_spec(preset.spec);
  if (calibration != nullptr && reads_calibration(spec, preset.num_layers)) {
    const fs::path file = fs::path(path).replace_extension(".safetensors");
    save_calibration(compact_calibration(*calibration, spec), file.string());
    preset.calibration_file = file.filename().string();
  }
  save_preset(preset, path);
}

std::string divergence_warning(const CandidateScore& winner, double target_ppl_delta) {
  const double expected = std::expm1(winner.kl_mean);
  if (expected <= target_ppl_delta) return "";
  return fmt::format(
      "{} is within the budget, but its KL of {:.4f} is that of a rise by {:.2f}%: this text may "
      "be "
      "foreign to the model: try another one",
      winner.spec.text, winner.kl_mean, 100 * expected);
}

std::string describe_failure(const TuneResult& result, double target_ppl_delta) {
  const auto& scores = result.measured.empty() ? result.candidates : result.measured;
  const auto closest = std::min_element(
      scores.begin(), scores.end(),
      [](const CandidateScore& a, const CandidateScore& b) { return a.ppl_delta < b.ppl_delta; });
  if (closest == scores.end()) return "PPL degradation too high: there are no settings to try";
  return fmt::format(
      "PPL degradation too high: of {} settings none is smaller than fp16 and within {:.2f}%, {} "
      "comes closest ({:+.2f}%, KL {:.4f}, {:.2f} bits); no preset is written: raise the rank "
      "(--rank-grid), compress values only (--target v), take int8 rather than int4 "
      "(--bits-options)",
      result.candidates.size(), 100 * target_ppl_delta, closest->spec.text,
      100 * closest->ppl_delta, closest->kl_mean, closest->true_bits);
}

}  // namespace kvquant
