// include/kvquant/preset.h and the presets that come with the program in Python.
#include "kvquant/preset.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "model/presets.h"

using namespace nanobind::literals;
namespace nb = nanobind;
using Path = std::filesystem::path;

namespace kvquant::python {
namespace {

using Class = nb::class_<Preset>;

void bind_figures(Class& cls) {
  cls.def_ro("compression_ratio", &Preset::compression_ratio, "Of keys and values to fp16.")
      .def_ro("side_compression", &Preset::side_compression, "Of the compressed sides alone.")
      .def_prop_ro(
          "total_compression", [](const Preset& self) { return self.compression_ratio; },
          "The same as compression_ratio.")
      .def_ro("baseline_ppl", &Preset::baseline_ppl)
      .def_ro("compressed_ppl", &Preset::compressed_ppl)
      .def_ro("ppl_delta", &Preset::ppl_delta, "Relative; None where it was not measured.")
      .def_ro("ppl_delta_low", &Preset::ppl_delta_low)
      .def_ro("ppl_delta_high", &Preset::ppl_delta_high)
      .def_ro("kl_divergence", &Preset::kl_divergence, "Nats, a mean over tokens.")
      .def_ro("top1_agreement", &Preset::top1_agreement)
      .def_ro("true_bits", &Preset::true_bits)
      .def_ro("target_ppl_delta", &Preset::target_ppl_delta)
      .def_ro("window", &Preset::window)
      .def_ro("eval_tokens", &Preset::eval_tokens)
      .def_ro("eval_text_sha256", &Preset::eval_text_sha256);
}

void bind_class(nb::module_& module) {
  nb::class_<ParetoPoint>(module, "ParetoPoint", "A setting that no other beats in bytes and KL.")
      .def_ro("spec", &ParetoPoint::spec)
      .def_ro("true_bits", &ParetoPoint::true_bits)
      .def_ro("ppl_delta", &ParetoPoint::ppl_delta)
      .def_ro("kl_divergence", &ParetoPoint::kl_divergence);
  Class cls(module, "Preset", "A spec that was tuned for a model, with its figures.");
  cls.def_ro("name", &Preset::name)
      .def_ro("model", &Preset::model)
      .def_ro("model_fingerprint", &Preset::model_fingerprint)
      .def_ro("version", &Preset::version)
      .def_ro("spec", &Preset::spec)
      .def_ro("head_dim", &Preset::head_dim)
      .def_ro("num_layers", &Preset::num_layers)
      .def_ro("rank", &Preset::rank)
      .def_prop_ro(
          "target", [](const Preset& self) { return std::string(to_string(self.target)); },
          "Which sides are compressed: 'v', 'k' or 'kv'.")
      .def_ro("bits", &Preset::bits)
      .def_ro("pareto", &Preset::pareto)
      .def_ro("calibration_file", &Preset::calibration_file)
      .def_prop_ro("calibration_path", &calibration_path, "Where it lies; '' when there is none.")
      .def_ro("path", &Preset::path, "Where it was loaded from.")
      .def("to_json", &preset_json, "What save_preset writes.")
      .def("__repr__", [](const Preset& self) {
        return "Preset('" + self.name + "', spec='" + self.spec + "')";
      });
  bind_figures(cls);
}

}  // namespace

void bind_preset(nb::module_& module) {
  bind_class(module);
  module.def(
      "load_preset", [](const Path& path) { return load_preset(path.string()); }, "path"_a,
      "A preset's file.");
  module.def("parse_preset", &parse_preset, "text"_a, "path"_a = "preset",
             "A preset's JSON; path stands in messages.");
  module.def(
      "save_preset",
      [](const Preset& preset, const Path& path) { save_preset(preset, path.string()); },
      "preset"_a, "path"_a, "Atomically.");
  module.def("list_presets", &list_presets, "All presets that come with kvquant.");
  module.def("get_preset_info", &get_preset_info, "model"_a, "name"_a,
             "A preset of a model ('smollm2', 'embedded' or a path): a file, a name such as\n"
             "'balanced', or 'r120-vonly' and the like, which need no file.");
  module.def(
      "spec_of_preset_name", [](const std::string& name) { return spec_of_preset_name(name); },
      "name"_a,
      "The spec that 'r120-vonly' or 'r96-kv-int8' stands for; None when it is no such name.");
}

}  // namespace kvquant::python
