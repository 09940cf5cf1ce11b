// include/kvquant/spec.h and the table of codecs in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "formats/codec_table.h"
#include "specs.h"

using namespace nanobind::literals;
namespace nb = nanobind;

namespace kvquant::python {
namespace {

// A codec of the grammar, "had+nuq4-1%": what a spec without sides gives keys.
Codec parse_codec(const std::string& text) { return parse_spec("k=" + text).key; }

std::vector<nb::dict> table(int64_t head_dim, int64_t num_kv_heads) {
  std::vector<nb::dict> rows;
  for (const CodecRow& row : codec_table(head_dim, num_kv_heads)) {
    nb::dict out;
    out["codec"] = row.codec;
    out["key_bits"] = row.key_bits > 0 ? nb::cast(row.key_bits) : nb::none();
    out["value_bits"] = row.value_bits > 0 ? nb::cast(row.value_bits) : nb::none();
    out["built"] = row.built;
    out["description"] = row.description;
    rows.push_back(std::move(out));
  }
  return rows;
}

void bind_class(nb::module_& module) {
  nb::class_<CacheSpec>(module, "CacheSpec",
                        "What is stored for keys and values, e.g. 'k=nuq4-1%,v=nuq3,sink=4'.")
      .def(nb::new_([](const std::string& text) { return parse_spec(text); }), "text"_a)
      .def_ro("text", &CacheSpec::text, "As typed.")
      .def_prop_ro("resolved", &resolved, "The long form, with every default written out.")
      .def_prop_ro("key", [](const CacheSpec& self) { return to_string(self.key); })
      .def_prop_ro("value", [](const CacheSpec& self) { return to_string(self.value); })
      .def_ro("sink", &CacheSpec::sink, "First tokens kept fp16; None: the mode decides.")
      .def_ro("recent", &CacheSpec::recent, "Last tokens kept fp16; None: the mode decides.")
      .def_ro("block", &CacheSpec::block, "Tokens of a block.")
      .def(
          "key_of", [](const CacheSpec& self, int layer) { return to_string(self.key_of(layer)); },
          "layer"_a, "The codec of a layer's keys.")
      .def(
          "value_of",
          [](const CacheSpec& self, int layer) { return to_string(self.value_of(layer)); },
          "layer"_a, "The codec of a layer's values.")
      .def("__str__", [](const CacheSpec& self) { return self.text; })
      .def("__repr__", [](const CacheSpec& self) { return "CacheSpec('" + self.text + "')"; });
}

}  // namespace

CacheSpec to_spec(const SpecArgument& spec) {
  if (const auto* text = std::get_if<std::string>(&spec)) return parse_spec(*text);
  return std::get<CacheSpec>(spec);
}

CacheMode parse_mode(const std::string& name) {
  if (name == "strict") return CacheMode::kStrict;
  if (name == "as-served") return CacheMode::kAsServed;
  throw std::invalid_argument("mode is '" + name + "', not 'strict' or 'as-served'");
}

const char* mode_name(CacheMode mode) {
  return mode == CacheMode::kStrict ? "strict" : "as-served";
}

void bind_spec(nb::module_& module) {
  bind_class(module);
  module.def(
      "parse_spec", [](const std::string& text) { return parse_spec(text); }, "text"_a,
      "Raises ValueError with the position of a mistake and what was expected there.");
  module.def(
      "resolved", [](const SpecArgument& spec) { return resolved(to_spec(spec)); }, "spec"_a,
      "The long form of a spec, with every default written out.");
  module.def(
      "with_windows",
      [](const SpecArgument& spec, const std::string& mode) {
        return with_windows(to_spec(spec), parse_mode(mode));
      },
      "spec"_a, "mode"_a, "The spec with the windows that 'strict' or 'as-served' implies.");
  module.def(
      "check_spec_fits",
      [](const SpecArgument& spec, int num_layers, int head_dim) {
        check_spec_fits(to_spec(spec), num_layers, head_dim);
      },
      "spec"_a, "num_layers"_a, "head_dim"_a, "Raises ValueError for specs no such model can use.");
  module.def(
      "spec_warnings", [](const SpecArgument& spec) { return spec_warnings(to_spec(spec)); },
      "spec"_a, "What is unusual about a spec, a line each.");
  module.def(
      "codec_table", &table, "head_dim"_a = 128, "num_kv_heads"_a = 8,
      "The codecs: codec, key_bits and value_bits (marginal, per value; None where it is not\n"
      "built), built, description.");
  module.def(
      "marginal_key_bits",
      [](const std::string& codec, int64_t head_dim) {
        return marginal_key_bits(parse_codec(codec), head_dim);
      },
      "codec"_a, "head_dim"_a, "Bits per stored key of one more token; 0: not built for keys.");
  module.def(
      "marginal_value_bits",
      [](const std::string& codec, int64_t head_dim, int64_t num_kv_heads) {
        return marginal_value_bits(parse_codec(codec), head_dim, num_kv_heads);
      },
      "codec"_a, "head_dim"_a, "num_kv_heads"_a,
      "Bits per stored value of one more token; 0: not built for values.");
}

}  // namespace kvquant::python
