// include/kvquant/attention.h in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include "base/check.h"
#include "bindings.h"
#include "layer_files.h"
#include "quantized.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

Result<float> forward(Attention& self, const LeadingArray& query, const Array& key,
                      const Array& value, const Array& attention_mask, bool is_prefill) {
  const Floats<4> q("query", query), k("key", key), v("value", value);
  const Mask mask("attention_mask", attention_mask);
  check_arg(query.is_given() && key.is_given() && value.is_given(),
            "forward: query, key and value can't be None");
  auto out = self.guard.run([&] {
    return self.attention.forward(q.view(), k.view(), v.view(), mask.view(), is_prefill);
  });
  self.framework = query.framework();
  return {std::move(out), query.shape("query"), query.framework()};
}

nb::dict round_trip_error(Attention& self, const Array& keys, const Array& attention_mask) {
  const Floats<4> values("keys", keys);
  const Mask mask("attention_mask", attention_mask);
  check_arg(keys.is_given(), "compute_round_trip_error: keys can't be None");
  const RoundTripError error = self.guard.run(
      [&] { return self.attention.compute_round_trip_error(values.view(), mask.view()); });
  nb::dict out;
  out["mse"] = error.mse;
  out["max_abs_error"] = error.max_abs_error;
  out["relative_error"] = error.relative_error;
  return out;
}

}  // namespace

void bind_attention(nb::module_& module) {
  nb::class_<Attention>(module, "PrefillQuantizedAttention",
                        "Causal attention over a padded batch whose keys and values are quantized\n"
                        "from the first prompt token on. Keys and queries as attention multiplies\n"
                        "them: rotated (RoPE), if at all.")
      .def(
          nb::new_([](int64_t num_heads, int64_t head_dim, const CodebookArgument& codebook,
                      const Array& scaling_factors, double outlier_fraction, int64_t block_size,
                      std::optional<int64_t> num_kv_heads, const Array& value_scaling_factors,
                      int num_threads) {
            const PrefillAttentionOptions options{
                .scaling_factors = scales_of("scaling_factors", scaling_factors),
                .value_scaling_factors = scales_of("value_scaling_factors", value_scaling_factors),
                .outlier_fraction = outlier_fraction,
                .block_size = block_size,
                .num_kv_heads = num_kv_heads.value_or(0),
                .num_threads = num_threads};
            return std::make_shared<Attention>(num_heads, head_dim, levels_of(codebook), options);
          }),
          "num_heads"_a, "head_dim"_a, "codebook"_a = "nuq3",
          "scaling_factors"_a.none() = nb::none(), "outlier_fraction"_a = 0.01,
          "block_size"_a = 256, "num_kv_heads"_a = nb::none(),
          "value_scaling_factors"_a.none() = nb::none(), "num_threads"_a = 0,
          "codebook: a name or levels [2^bits]. scaling_factors [num_kv_heads, head_dim] of keys\n"
          "(value_scaling_factors of values, by default the same); None: estimated from the first\n"
          "prefill. num_threads 0: one for each core.")
      .def(
          "forward", &forward, "query"_a, "key"_a, "value"_a,
          "attention_mask"_a.none() = nb::none(), "is_prefill"_a = true,
          "query [batch, num_heads, seq_len, head_dim], key and value [batch, num_kv_heads,\n"
          "seq_len, head_dim], attention_mask [batch, seq_len] of these tokens. Returns float32 "
          "of\n"
          "query's shape, zeros in padding. A prefill starts new caches, else tokens are appended.")
      .def_prop_ro("key_cache",
                   [](const std::shared_ptr<Attention>& self) {
                     self->attention.key_cache();  // throws before the first prefill
                     return Quantized(self, CacheSide::kKeys, self->framework);
                   })
      .def_prop_ro("value_cache",
                   [](const std::shared_ptr<Attention>& self) {
                     self->attention.value_cache();
                     return Quantized(self, CacheSide::kValues, self->framework);
                   })
      .def("compute_round_trip_error", &round_trip_error, "keys"_a,
           "attention_mask"_a.none() = nb::none(),
           "What quantizing keys [batch, num_kv_heads, seq_len, head_dim] loses: mse,\n"
           "max_abs_error, relative_error.");
}

}  // namespace kvquant::python
