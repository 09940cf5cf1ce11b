// src/model/calibrate.h and src/model/calibration_fit.h in Python: what kvquant/calibration.py and
// kvquant/hf/calibration.py make calibration files with.
#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>

#include "base/check.h"
#include "bench/result.h"
#include "bindings.h"
#include "engine.h"
#include "model/calibration_fit.h"
#include "ops/rope_scaling.h"
#include "texts.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

using OnProgress = std::function<void(int64_t, int64_t)>;
using Text = std::tuple<std::string, int64_t, int64_t, std::string>;  // of CalibrationText

// Writes the file; what it says of itself.
nb::dict save(Calibration calibration, const Path& path) {
  calibration.info.kvquant_version = version();
  {
    const nb::gil_scoped_release released;
    save_calibration(calibration, path.string());
  }
  const CalibrationInfo& info = calibration.info;
  nb::dict out;
  out["output"] = path.string();
  out["num_samples"] = info.num_samples;
  out["seq_len"] = info.seq_len;
  out["tokens"] = info.num_samples * info.seq_len;
  out["rank"] = info.rank;
  out["recipe"] = info.recipe;
  out["model_fingerprint"] = info.model_fingerprint;
  return out;
}

nb::dict calibrate_engine(Engine& model, const NamedTokens& named, const CalibrateOptions& options,
                          const Path& output, const OnProgress& on_progress) {
  const auto texts = to_texts(named);
  const auto progress = [&](int64_t done, int64_t total) {
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (on_progress) on_progress(done, total);
  };
  return save(model.guard.run([&] { return calibrate(model.model, texts, options, progress); }),
              output);
}

// ---- a fit to activations of another runtime

struct ForeignModel {
  CalibrationShape shape;
  std::string fingerprint;
  double score_scale = 0;
  int64_t sliding_window = 0;
  std::vector<double> frequencies{};  // of RoPE, [head_dim / 2]
  int num_threads = 0;
};

class Fit {
 public:
  Fit(const ForeignModel& model, const CalibrateOptions& options,
      std::vector<CalibrationText> texts)
      : pool_(model.num_threads, ThreadPool::Pin::kNo),
        rope_(options.seq_len, model.frequencies),
        shape_(model.shape),
        seq_len_(options.seq_len),
        num_samples_(std::ssize(texts)),
        fit_({.shape = model.shape,
              .fingerprint = model.fingerprint,
              .rope = rope_,
              .outputs = {.scale = static_cast<float>(model.score_scale),
                          .sliding_window = model.sliding_window,
                          .precision = default_precision()},
              .pool = pool_},
             options, std::move(texts)) {}

  void add_layer(const Array& queries, const Array& keys, const Array& values,
                 const Array& output_weight) {
    const std::vector<float> weight = to_floats("output_weight", output_weight);
    const Side q = side("queries", queries, shape_.num_q_heads);
    const Side k = side("keys", keys, shape_.num_kv_heads);
    const Side v = side("values", values, shape_.num_kv_heads);
    const int64_t width = shape_.num_q_heads * shape_.head_dim;
    check_arg(!weight.empty() && std::ssize(weight) % width == 0,
              "output_weight has " + std::to_string(weight.size()) +
                  " elements, not [hidden, num_q_heads * head_dim = " + std::to_string(width) +
                  "]");
    guard_.run([&] {
      const Side rotated_q = rotated(q, shape_.num_q_heads);
      const Side rotated_k = rotated(k, shape_.num_kv_heads);
      const auto gram = sum_output_gram(weight, shape_, pool_);
      fit_.add_layer({.num_samples = num_samples_,
                      .seq_len = seq_len_,
                      .keys = view(k, shape_.num_kv_heads),
                      .rotated_keys = view(rotated_k, shape_.num_kv_heads),
                      .values = view(v, shape_.num_kv_heads),
                      .queries = view(q, shape_.num_q_heads),
                      .rotated_queries = view(rotated_q, shape_.num_q_heads),
                      .output_gram = gram});
    });
  }

  Calibration finish() {
    return guard_.run([&] { return fit_.finish(); });
  }

 private:
  using Side = std::vector<float>;  // [num_samples * seq_len, heads, head_dim]

  Side side(const char* name, const Array& array, int64_t num_heads) const {
    const std::vector<int64_t> expected = {num_samples_ * seq_len_, num_heads, shape_.head_dim};
    const auto found = array.shape(name);
    check_arg(found == expected,
              std::string(name) + " has the shape " + describe_shape(found) +
                  ", not [num_samples * seq_len, heads, head_dim] = " + describe_shape(expected));
    return to_floats(name, array);
  }

  TensorView<const float, 3> view(const Side& side, int64_t num_heads) const {
    return row_major<const float, 3>(side.data(),
                                     {num_samples_ * seq_len_, num_heads, shape_.head_dim});
  }

  Side rotated(Side side, int64_t num_heads) const {
    const int64_t size = seq_len_ * num_heads * shape_.head_dim;
    for (int64_t sample = 0; sample < num_samples_; ++sample) {
      rope(row_major(side.data() + sample * size, {seq_len_, num_heads, shape_.head_dim}), 0,
           rope_);
    }
    return side;
  }

  Guard guard_;
  ThreadPool pool_;
  RopeTable rope_;
  CalibrationShape shape_;
  int64_t seq_len_, num_samples_;
  CalibrationFit fit_;
};

std::vector<CalibrationText> to_infos(const std::vector<Text>& texts) {
  std::vector<CalibrationText> out;
  for (const auto& [file, begin, end, hash] : texts) out.push_back({file, begin, end, hash});
  return out;
}

void bind_options(nb::module_& module) {
  nb::class_<CalibrateOptions>(module, "CalibrateOptions",
                               "What is fitted and to how much; the options of kvquant calibrate.")
      .def(
          "__init__",
          [](CalibrateOptions* self, int64_t samples, int64_t seq_len, int64_t rank, uint64_t seed,
             int64_t ubatch, const std::string& recipe, const std::string& outliers,
             const std::string& feedback, const std::string& codebook,
             const std::string& codebook_weights, const std::string& codebook_per,
             const std::string& bases, const std::optional<Path>& fisher) {
            new (self) CalibrateOptions{.num_samples = samples,
                                        .seq_len = seq_len,
                                        .rank = rank,
                                        .seed = seed,
                                        .ubatch = ubatch,
                                        .choices = parse_fit_choices({.recipe = recipe,
                                                                      .outliers = outliers,
                                                                      .feedback = feedback,
                                                                      .codebook = codebook,
                                                                      .weights = codebook_weights,
                                                                      .codebooks = codebook_per,
                                                                      .bases = bases}),
                                        .fisher = fisher ? fisher->string() : ""};
          },
          "samples"_a = 16, "seq_len"_a = 2048, "rank"_a = 0, "seed"_a = 42, "ubatch"_a = 512,
          "recipe"_a = "error-saved", "outliers"_a = "", "feedback"_a = "", "codebook"_a = "",
          "codebook_weights"_a = "", "codebook_per"_a = "layer", "bases"_a = "outputs",
          "fisher"_a = nb::none(),
          "seq_len: tokens of a sample. rank 0: head_dim. What is '' is as the recipe says; see\n"
          "kvquant calibrate --help.")
      .def_prop_ro("samples", [](const CalibrateOptions& self) { return self.num_samples; })
      .def_prop_ro("seq_len", [](const CalibrateOptions& self) { return self.seq_len; })
      .def_prop_ro("ubatch", [](const CalibrateOptions& self) { return self.ubatch; });
}

void bind_fit(nb::module_& module) {
  nb::class_<Fit>(module, "CalibrationFit",
                  "Fits a calibration to activations that came from another runtime, layer by\n"
                  "layer, as kvquant calibrate fits them to the engine's own.")
      .def(nb::new_([](int64_t num_layers, int64_t num_q_heads, int64_t num_kv_heads,
                       int64_t head_dim, const std::string& fingerprint,
                       const CalibrateOptions& options, const std::vector<Text>& texts,
                       std::vector<double> frequencies, std::optional<double> score_scale,
                       int64_t sliding_window, int num_threads) {
             check_arg(num_layers > 0 && num_kv_heads > 0 && num_q_heads > 0 && head_dim > 0 &&
                           num_q_heads % num_kv_heads == 0 && num_threads >= 0,
                       "CalibrationFit: a model can't have this shape");
             check_arg(std::ssize(frequencies) == head_dim / 2,
                       "CalibrationFit: " + std::to_string(frequencies.size()) +
                           " frequencies for a head_dim of " + std::to_string(head_dim));
             const double usual = 1.0f / std::sqrt(static_cast<float>(head_dim));
             return std::make_unique<Fit>(
                 ForeignModel{.shape = {num_layers, num_q_heads, num_kv_heads, head_dim},
                              .fingerprint = fingerprint,
                              .score_scale = score_scale.value_or(usual),
                              .sliding_window = sliding_window,
                              .frequencies = std::move(frequencies),
                              .num_threads = num_threads},
                 options, to_infos(texts));
           }),
           "num_layers"_a, "num_q_heads"_a, "num_kv_heads"_a, "head_dim"_a, "fingerprint"_a,
           "options"_a, "texts"_a, "frequencies"_a, "score_scale"_a = nb::none(),
           "sliding_window"_a = 0, "num_threads"_a = 0,
           "texts: of choose_samples. frequencies [head_dim / 2]: of RoPE.")
      .def("add_layer", &Fit::add_layer, "queries"_a, "keys"_a, "values"_a, "output_weight"_a,
           "The next layer: queries and keys before RoPE, values, [num_samples * seq_len, heads,\n"
           "head_dim], sample after sample; the weight of its output projection [hidden,\n"
           "num_q_heads * head_dim].")
      .def(
          "save", [](Fit& self, const Path& path) { return save(self.finish(), path); }, "path"_a,
          nb::sig("def save(self, path: str | os.PathLike) -> dict[str, typing.Any]"),
          "Writes the file of all layers; returns what it says of itself.");
}

}  // namespace

std::vector<TokenizedText> to_texts(const NamedTokens& named) {
  std::vector<TokenizedText> texts;
  for (const auto& [name, tokens] : named) texts.push_back({name, to_tokens("tokens", tokens)});
  return texts;
}

void bind_calibration(nb::module_& module) {
  bind_options(module);
  bind_fit(module);
  module.def(
      "calibrate_tokens", &calibrate_engine, "model"_a, "texts"_a, "options"_a, "output"_a,
      "on_progress"_a.none() = nb::none(),
      nb::sig("def calibrate_tokens(model: Model, texts: collections.abc.Sequence[tuple[str, "
              "kvquant._types.Tokens]], options: CalibrateOptions, output: str | os.PathLike, "
              "on_progress: collections.abc.Callable[[int, int], None] | None = None) -> "
              "dict[str, typing.Any]"),
      "What calibrate does with the tokens of texts.");
  module.def(
      "choose_samples",
      [](const NamedTokens& named, int32_t bos, const CalibrateOptions& options) {
        const CalibrationSamples chosen = choose_samples(to_texts(named), bos, options);
        std::vector<Text> texts;
        for (const CalibrationText& text : chosen.texts) {
          texts.emplace_back(text.file, text.begin, text.end, text.hash);
        }
        return std::make_pair(chosen.tokens, texts);
      },
      "texts"_a, "bos"_a, "options"_a,
      nb::sig("def choose_samples(texts: collections.abc.Sequence[tuple[str, "
              "kvquant._types.Tokens]], bos: int, options: CalibrateOptions) -> "
              "tuple[list[list[int]], list[tuple[str, int, int, str]]]"),
      "Samples of texts, with bos in front unless it is -1, as kvquant calibrate takes them; and\n"
      "where they come from.");
  module.def(
      "fingerprint_of_checkpoint",
      [](const Path& path) { return open_checkpoint(path.string())->fingerprint(); }, "path"_a,
      "Model.fingerprint of a file or folder, without loading it.");
  module.def(
      "name_of_checkpoint",
      [](const Path& path) { return open_checkpoint(path.string())->config().name; }, "path"_a,
      "What presets call the model of a file or folder.");
  module.def(
      "check_calibration_fits",
      [](const Path& calibration, const std::string& fingerprint, int64_t num_layers,
         int64_t num_q_heads, int64_t num_kv_heads, int64_t head_dim) {
        check_calibration_fits(load_calibration(calibration.string()), fingerprint,
                               {num_layers, num_q_heads, num_kv_heads, head_dim});
      },
      "calibration"_a, "fingerprint"_a, "num_layers"_a, "num_q_heads"_a, "num_kv_heads"_a,
      "head_dim"_a, "ValueError when a calibration file was made for another model.");
}

}  // namespace kvquant::python
