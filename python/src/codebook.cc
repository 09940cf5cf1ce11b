// include/kvquant/codebook.h in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "kvquant/codebook.h"
#include "layer_files.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

AnyResult<float> row(std::vector<float> values) {
  const auto count = static_cast<int64_t>(values.size());
  return {{std::move(values), {count}}};
}

Result<float> fit(const LeadingArray& values, const Array& weights, int bits) {
  const auto x = to_floats("values", values);
  const auto w = weights.is_given() ? to_floats("weights", weights) : std::vector<float>();
  std::vector<float> levels;
  {
    const nb::gil_scoped_release released;
    levels = compute_nuq_codebook(x, w, bits);
  }
  const auto count = static_cast<int64_t>(levels.size());
  return {std::move(levels), {count}, values.framework()};
}

Result<uint8_t> quantize(const LeadingArray& x, const CodebookArgument& codebook) {
  const auto values = to_floats("x", x);
  const auto levels = levels_of(codebook);
  std::vector<uint8_t> codes(values.size());
  {
    const nb::gil_scoped_release released;
    quantize_to_nuq(values, levels, codes);
  }
  return {std::move(codes), x.shape("x"), x.framework()};
}

Result<float> dequantize(const LeadingArray& codes, const CodebookArgument& codebook) {
  const auto indices = to_uint8("codes", codes);
  const auto levels = levels_of(codebook);
  std::vector<float> out(indices.size());
  {
    const nb::gil_scoped_release released;
    dequantize_from_nuq(indices, levels, out);
  }
  return {std::move(out), codes.shape("codes"), codes.framework()};
}

Result<float> estimate(const LeadingArray& x, const Array& attention_mask, ScaleRule rule) {
  const Floats<4> values("x", x);
  const Mask mask("attention_mask", attention_mask);
  const auto view = values.view();
  std::vector<float> scales;
  {
    const nb::gil_scoped_release released;
    scales = estimate_scaling_factors(view, mask.view(), rule);
  }
  return {std::move(scales), {view.shape[1], view.shape[3]}, x.framework()};
}

// ---- files

LayerCodebook layer_codebook(const Array& levels) {
  const auto shape = levels.shape("layers");
  if (shape.size() != 1 && shape.size() != 2) {
    throw std::invalid_argument("a layer's codebook has the shape " + describe_shape(shape) +
                                ", not [num_levels] or [num_heads, num_levels]");
  }
  return {.num_heads = shape.size() == 2 ? shape[0] : 0,
          .num_levels = shape.back(),
          .levels = to_floats("layers", levels)};
}

void save_codebooks(const Path& dir, const std::vector<Array>& layers) {
  std::vector<LayerCodebook> codebooks;
  for (const Array& levels : layers) codebooks.push_back(layer_codebook(levels));
  save_per_layer_codebooks(dir.string(), codebooks);
}

std::vector<AnyResult<float>> load_codebooks(const Path& dir) {
  std::vector<AnyResult<float>> out;
  for (LayerCodebook& layer : load_per_layer_codebooks(dir.string())) {
    std::vector<int64_t> shape = {layer.num_levels};
    if (layer.num_heads > 0) shape.insert(shape.begin(), layer.num_heads);
    out.push_back({{std::move(layer.levels), std::move(shape)}});
  }
  return out;
}

void save_scales(const Path& dir, const std::vector<Array>& layers) {
  std::vector<LayerScalingFactors> scales;
  for (const Array& layer : layers) scales.push_back(scales_of("layers", layer));
  save_per_layer_scaling_factors(dir.string(), scales);
}

std::vector<AnyResult<float>> load_scales(const Path& dir) {
  std::vector<AnyResult<float>> out;
  for (LayerScalingFactors& layer : load_per_layer_scaling_factors(dir.string())) {
    out.push_back({{std::move(layer.scales), {layer.num_heads, layer.head_dim}}});
  }
  return out;
}

void bind_files(nb::module_& module) {
  module.def("save_per_layer_codebooks", &save_codebooks, "dir"_a, "layers"_a,
             "Writes dir/codebooks.safetensors; a layer is float32 [num_levels] or\n"
             "[num_heads, num_levels].");
  module.def("load_per_layer_codebooks", &load_codebooks, "dir"_a,
             "The layers that save_per_layer_codebooks wrote, as numpy arrays.");
  module.def("save_per_layer_scaling_factors", &save_scales, "dir"_a, "layers"_a,
             "Writes dir/scaling_factors.safetensors; a layer is float32 [num_heads, head_dim].");
  module.def("load_per_layer_scaling_factors", &load_scales, "dir"_a,
             "The layers that save_per_layer_scaling_factors wrote, as numpy arrays.");
}

}  // namespace

std::vector<float> levels_of(const CodebookArgument& codebook) {
  if (const auto* name = std::get_if<std::string>(&codebook)) return get_cached_codebook(*name);
  return to_floats("codebook", std::get<Array>(codebook));
}

LayerScalingFactors scales_of(const char* name, const Array& scales) {
  if (!scales.is_given()) return {};
  const auto shape = scales.shape(name);
  if (shape.size() != 2) {
    throw std::invalid_argument(std::string(name) + " has the shape " + describe_shape(shape) +
                                ", not [num_heads, head_dim]");
  }
  return {.num_heads = shape[0], .head_dim = shape[1], .scales = to_floats(name, scales)};
}

void bind_codebook(nb::module_& module) {
  module.def("get_nuq_bitwidth", &get_nuq_bitwidth, "name"_a, "Bits of a code: nuq3 has 3.");
  module.def("get_num_levels", &get_num_levels, "name"_a, "Levels of a codebook: nuq3 has 8.");
  module.def(
      "create_heuristic_codebook",
      [](const std::string& name) { return row(create_heuristic_codebook(name)); }, "name"_a,
      "Levels for normal data, ascending in [-1, 1]: float32 [2^bits].");
  module.def(
      "get_cached_codebook", [](const std::string& name) { return row(get_cached_codebook(name)); },
      "name"_a, "The same levels, computed once per process.");
  module.def("compute_nuq_codebook", &fit, "values"_a, "weights"_a.none() = nb::none(),
             "bits"_a = 3,
             "The 2^bits levels with the least weighted squared error on values [n], which are\n"
             "normalised; weights [n] or None. Weighted k-means, solved exactly.");
  module.def("quantize_to_nuq", &quantize, "x"_a, "codebook"_a,
             "Indices of the nearest levels, uint8 of x's shape. x is normalised float32 of any\n"
             "shape; codebook a name or levels [2^bits].");
  module.def("dequantize_from_nuq", &dequantize, "codes"_a, "codebook"_a,
             "codebook[codes], float32 of the shape of codes.");
  nb::class_<ScaleRule>(module, "ScaleRule", "Which statistic of |x| of a channel is its scale.")
      .def_static(
          "mean_abs", [] { return ScaleRule::kMeanAbs; }, "The mean: the published choice.")
      .def_static(
          "max_abs", [] { return ScaleRule::kMaxAbs; }, "The largest.")
      .def_static("percentile", &ScaleRule::percentile, "percent"_a,
                  "The ceil(n * percent / 100)-th smallest of n; percent in (0, 100].");
  module.def("estimate_scaling_factors", &estimate, "x"_a, "attention_mask"_a.none() = nb::none(),
             "rule"_a = ScaleRule::kMeanAbs,
             "One scale per (head, channel), float32 [num_heads, head_dim], from x\n"
             "[batch, num_heads, seq_len, head_dim] and a mask [batch, seq_len].");
  bind_files(module);
}

}  // namespace kvquant::python
