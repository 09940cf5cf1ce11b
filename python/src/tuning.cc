// src/eval/tune.h over another runtime in Python: what kvquant/hf/tuning.py makes presets with.
#include "eval/tune.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "arrays.h"
#include "base/check.h"
#include "bench/result.h"
#include "bindings.h"
#include "eval/tune_candidates.h"
#include "eval/tune_preset.h"
#include "model/presets.h"
#include "quant/compact_calibration.h"
#include "specs.h"
#include "texts.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

using Tokens = std::vector<int32_t>;

// One window under several specs, measured in Python: dicts with the names of evaluate_perplexity.
std::vector<WindowScore> scores_in_python(const nb::callable& measure,
                                          std::span<const int32_t> text,
                                          std::span<const CacheSpec> specs) {
  const auto results = nb::cast<std::vector<nb::dict>>(measure(
      Tokens(text.begin(), text.end()), std::vector<CacheSpec>(specs.begin(), specs.end())));
  std::vector<WindowScore> out;
  for (const nb::dict& result : results) {
    const auto number = [&](const char* key) { return nb::cast<double>(result[key]); };
    PerplexityResult read;
    read.perplexity = number("perplexity");
    read.nll_delta_mean = number("nll_delta_mean");
    read.nll_delta_sd = number("nll_delta_sd");
    read.kl_mean = number("kl_mean");
    read.top1_agreement = number("top1_agreement");
    read.true_bits = number("true_bits");
    read.cache_bytes = nb::cast<int64_t>(result["cache_bytes"]);
    read.tokens = nb::cast<int64_t>(result["tokens"]);
    out.push_back(window_score(read));
  }
  return out;
}

struct Run {
  std::optional<Path> calibration;  // that measure reads, rounded
  Path log, output;
  std::string name;  // what else decides figures
  int64_t num_bos = 0;
};

Preset tune_in_python(const nb::callable& measure, const TuneTexts& texts,
                      const std::vector<CacheSpec>& specs, const TunePresetOptions& options,
                      const Run& run) {
  std::optional<Calibration> calibration;
  if (run.calibration) calibration = load_calibration(run.calibration->string());
  const TuneRuntime runtime{
      .fingerprint = options.model.fingerprint,
      .calibration = calibration ? calibration_hash(*calibration) : "",
      .num_bos = run.num_bos,
      .score_window = [&](auto text, auto which, const TuneOptions&, const Progress& progress) {
        auto scores = scores_in_python(measure, text, which);
        report(progress, 1, 1);
        return scores;
      }};
  TuneLog log(run.log.string());
  const TuneResult result = tune(runtime, {texts.selection, texts.test}, specs,
                                 {.target_ppl_delta = options.target_ppl_delta,
                                  .window = options.window,
                                  .program = options.program,
                                  .run = run.name},
                                 log);
  check_arg(result.winner.has_value(), describe_failure(result, options.target_ppl_delta));
  const auto warning =
      divergence_warning(result.measured[*result.winner], options.target_ppl_delta);
  if (!warning.empty() && PyErr_WarnEx(PyExc_UserWarning, warning.c_str(), 1) != 0) {
    throw nb::python_error();
  }
  Preset preset = tuned_preset(result, texts, options);
  save_tuned_preset(preset, calibration ? &*calibration : nullptr, run.output.string());
  return load_preset(run.output.string());
}

TuneTexts split(const NamedTokens& named, const NamedTokens& test,
                const std::optional<Path>& calibration, const SplitOptions& options) {
  const auto texts = to_texts(named), test_texts = to_texts(test);
  std::optional<CalibrationInfo> made;
  if (calibration) made = load_calibration(calibration->string()).info;
  return split_texts(texts, test_texts.empty() ? nullptr : test_texts.data(),
                     made ? &*made : nullptr, options);
}

void bind_texts(nb::module_& module) {
  nb::class_<TuneTexts>(module, "TuneTexts",
                        "What tuning calibrates on, selects on and tests on: no two share text.")
      .def(
          "__init__",
          [](TuneTexts* self, const NamedTokens& texts, const NamedTokens& test,
             const std::optional<Path>& calibration, int64_t window_tokens, int64_t windows,
             int64_t test_windows, int64_t calibration_tokens) {
            new (self) TuneTexts(split(texts, test, calibration,
                                       {.window_tokens = window_tokens,
                                        .selection_windows = windows,
                                        .test_windows = test_windows,
                                        .calibration_tokens = calibration_tokens}));
          },
          "texts"_a, "test"_a, "calibration"_a.none(), "window_tokens"_a, "windows"_a,
          "test_windows"_a, "calibration_tokens"_a,
          nb::sig("def __init__(self, texts: collections.abc.Sequence[tuple[str, "
                  "kvquant._types.Tokens]], test: collections.abc.Sequence[tuple[str, "
                  "kvquant._types.Tokens]], calibration: str | os.PathLike | None, window_tokens: "
                  "int, windows: int, test_windows: int, calibration_tokens: int) -> None"),
          "texts: token ids with the names of their files; test: one of its own, or none.\n"
          "calibration: a file that is there already. window_tokens, calibration_tokens: of a\n"
          "window and of a sample, without BOS.")
      .def_prop_ro(
          "calibration",
          [](const TuneTexts& self) {
            std::vector<std::pair<std::string, Tokens>> out;
            for (const TokenizedText& text : self.calibration) {
              out.emplace_back(text.file, text.tokens);
            }
            return out;
          },
          "(name, token ids) of what a calibration is to be made from; [] where there is one.")
      .def(
          "made",
          [](const TuneTexts& self, const Path& calibration, const std::string& fingerprint,
             const CalibrateOptions& options, int64_t num_bos) {
            const CalibrationInfo info = load_calibration(calibration.string()).info;
            return info.kvquant_version == version() && info.model_fingerprint == fingerprint &&
                   was_made_from(info, self.calibration, options, num_bos);
          },
          "calibration"_a, "fingerprint"_a, "options"_a, "num_bos"_a,
          "Whether a file is what calibrating on these texts would give.");
}

void bind_tune_with(nb::module_& module) {
  module.def(
      "tune_with",
      [](const nb::callable& measure, const TuneTexts& texts, const std::vector<CacheSpec>& specs,
         const std::string& model, const std::string& fingerprint,
         const std::tuple<int64_t, int64_t, int64_t>& shape, const std::string& name,
         double target_ppl_delta, int64_t window, int64_t num_bos, const std::string& run,
         const std::optional<Path>& calibration, const Path& log, const Path& output) {
        const auto [num_layers, num_kv_heads, head_dim] = shape;
        return tune_in_python(measure, texts, specs,
                              {.model = {.name = model,
                                         .fingerprint = fingerprint,
                                         .num_layers = num_layers,
                                         .num_kv_heads = num_kv_heads,
                                         .head_dim = head_dim},
                               .name = name,
                               .target_ppl_delta = target_ppl_delta,
                               .window = window,
                               .program = version()},
                              {calibration, log, output, run, num_bos});
      },
      "measure"_a, "texts"_a, "specs"_a, nb::kw_only(), "model"_a, "fingerprint"_a, "shape"_a,
      "name"_a, "target_ppl_delta"_a, "window"_a, "num_bos"_a, "run"_a, "calibration"_a.none(),
      "log"_a, "output"_a,
      nb::sig("def tune_with(measure: collections.abc.Callable[[list[int], list[CacheSpec]], "
              "list[dict[str, typing.Any]]], texts: TuneTexts, specs: "
              "collections.abc.Sequence[CacheSpec], *, model: str, fingerprint: str, shape: "
              "tuple[int, int, int], name: str, target_ppl_delta: float, window: int, num_bos: "
              "int, run: str, calibration: str | os.PathLike | None, log: str | os.PathLike, "
              "output: str | os.PathLike) -> Preset"),
      "kvquant tune of a model that another program runs: measure gives the results of specs on\n"
      "the tokens of one window, without BOS, strict, with the names of evaluate_perplexity.\n"
      "shape: (num_layers, num_kv_heads, head_dim); run: what else decides figures; log: what is\n"
      "measured already. Writes the preset and its calibration; ValueError where none is found.");
}

}  // namespace

void bind_tuning(nb::module_& module) {
  bind_texts(module);
  bind_tune_with(module);
  module.def(
      "tune_candidates",
      [](int64_t num_layers, int64_t head_dim, const std::string& target,
         const std::vector<int64_t>& ranks, const std::vector<int64_t>& bits,
         const std::vector<std::string>& codecs, const std::vector<std::string>& specs,
         std::optional<int64_t> sink, std::optional<int64_t> recent) {
        return tune_candidates({.target = parse_preset_target(target),
                                .ranks = ranks,
                                .bits = bits,
                                .codecs = codecs,
                                .specs = specs,
                                .sink = sink,
                                .recent = recent},
                               num_layers, head_dim);
      },
      "num_layers"_a, "head_dim"_a, "target"_a, "ranks"_a, "bits"_a, "codecs"_a, "specs"_a,
      "sink"_a.none() = nb::none(), "recent"_a.none() = nb::none(),
      "The specs that kvquant tune would try. ranks []: its grid; bits []: no low-rank ones.");
  module.def(
      "round_calibration",
      [](const Path& path, const Path& output) {
        Calibration calibration = load_calibration(path.string());
        round_calibration(calibration);
        save_calibration(calibration, output.string());
      },
      "path"_a, "output"_a, "A calibration with the numbers that the file of a preset has.");
  module.def(
      "check_preset_fits",
      [](const Preset& preset, const std::string& name, const std::string& fingerprint,
         int64_t num_layers, int64_t head_dim) {
        check_preset_fits(preset, {.name = name,
                                   .fingerprint = fingerprint,
                                   .num_layers = num_layers,
                                   .head_dim = head_dim});
      },
      "preset"_a, "name"_a, "fingerprint"_a, "num_layers"_a, "head_dim"_a,
      "ValueError when a preset was made for another model.");
}

}  // namespace kvquant::python
