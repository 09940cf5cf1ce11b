// include/kvquant/quantizer.h in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "base/check.h"
#include "bindings.h"
#include "layer_files.h"
#include "quantized.h"

using namespace nanobind::literals;

namespace kvquant::python {

const QuantizedKVCache& Quantized::cache() const {
  if (own_) return *own_;
  return side_ == CacheSide::kKeys ? attention_->attention.key_cache()
                                   : attention_->attention.value_cache();
}

QuantizedKVCache& Quantized::own() {
  if (!own_) {
    throw std::invalid_argument(
        "this cache belongs to a PrefillQuantizedAttention: its forward() appends to it");
  }
  return *own_;
}

namespace {

CacheSide side_of(const std::string& name) {
  if (name == "keys") return CacheSide::kKeys;
  if (name == "values") return CacheSide::kValues;
  throw std::invalid_argument("side is '" + name + "', not 'keys' or 'values'");
}

const KeyThresholds& given(const std::optional<KeyThresholds>& thresholds) {
  static const KeyThresholds none;
  return thresholds ? *thresholds : none;
}

// ---- QuantizedKVCache

std::vector<int64_t> shape_of(const QuantizedKVCache& cache) {
  return {cache.batch(), cache.num_heads(), cache.seq_len(), cache.head_dim()};
}

// fn(cache) under the guard: an array of the batch's shape.
template <class T, class Fn>
AnyResult<T> batch_view(const Quantized& self, Fn&& fn) {
  Result<T> out{.framework = self.framework()};
  self.read([&](const QuantizedKVCache& cache) {
    out.data = fn(cache);
    out.shape = shape_of(cache);
  });
  return {std::move(out)};
}

AnyResult<uint8_t> quantized_indices(const Quantized& self) {
  return batch_view<uint8_t>(self, [](const auto& cache) { return cache.quantized_indices(); });
}

AnyResult<uint8_t> outlier_mask(const Quantized& self) {
  auto out = batch_view<uint8_t>(self, [](const auto& cache) { return cache.outlier_mask(); });
  out.result.is_bool = true;
  return out;
}

AnyResult<float> outlier_values(const Quantized& self) {
  return batch_view<float>(self, [](const auto& cache) { return cache.outlier_values(); });
}

AnyResult<float> scaling_factors(const Quantized& self) {
  Result<float> out{.framework = self.framework()};
  self.read([&](const QuantizedKVCache& cache) {
    out.data = cache.scaling_factors();
    out.shape = {cache.num_heads(), cache.head_dim()};
  });
  return {std::move(out)};
}

AnyResult<float> codebook(const Quantized& self) {
  Result<float> out{.framework = self.framework()};
  self.read([&](const QuantizedKVCache& cache) {
    out.data.assign(cache.codebook().begin(), cache.codebook().end());
  });
  out.shape = {std::ssize(out.data)};
  return {std::move(out)};
}

AnyResult<int64_t> seq_lengths(const Quantized& self) {
  Result<int64_t> out{.framework = self.framework()};
  out.data = self.read([](const auto& cache) { return cache.seq_lengths(); });
  out.shape = {std::ssize(out.data)};
  return {std::move(out)};
}

AnyResult<float> decoded(const Quantized& self) {
  return batch_view<float>(self, [](const auto& cache) { return fused_dequantize_batch(cache); });
}

// A property of the cache, under the guard.
template <auto kMethod>
auto property(const Quantized& self) {
  return self.read([](const QuantizedKVCache& cache) { return (cache.*kMethod)(); });
}

void bind_cache_class(nb::module_& module) {
  nb::class_<KeyThresholds>(module, "KeyThresholds",
                            "Which |key| of a channel are outliers, fixed by the first call.")
      .def_prop_ro("magnitudes", [](const KeyThresholds& self) { return self.magnitudes; })
      .def_prop_ro("ties", [](const KeyThresholds& self) { return self.ties; });
  nb::class_<Quantized>(module, "QuantizedKVCache",
                        "Keys or values of a padded batch: packed codes and outliers. Views have\n"
                        "the positions of the padded tensors and are made at every access.")
      .def_prop_ro("side",
                   [](const Quantized& self) {
                     return property<&QuantizedKVCache::side>(self) == CacheSide::kKeys ? "keys"
                                                                                        : "values";
                   })
      .def_prop_ro("batch", &property<&QuantizedKVCache::batch>)
      .def_prop_ro("num_heads", &property<&QuantizedKVCache::num_heads>)
      .def_prop_ro("seq_len", &property<&QuantizedKVCache::seq_len>)
      .def_prop_ro("head_dim", &property<&QuantizedKVCache::head_dim>)
      .def_prop_ro("bits", &property<&QuantizedKVCache::bits>)
      .def_prop_ro("seq_lengths", &seq_lengths, "Real tokens: int64 [batch].")
      .def_prop_ro("codebook", &codebook, "Levels: float32 [2^bits].")
      .def_prop_ro("scaling_factors", &scaling_factors, "float32 [num_heads, head_dim].")
      .def_prop_ro("quantized_indices", &quantized_indices,
                   "uint8 [batch, num_heads, seq_len, head_dim].")
      .def_prop_ro("outlier_mask", &outlier_mask, "bool of the same shape.")
      .def_prop_ro("outlier_values", &outlier_values,
                   "float32 of the same shape, 0 where there is no outlier.")
      .def_prop_ro("key_thresholds",
                   [](const Quantized& self) {
                     return self.read([](const auto& it) { return it.key_thresholds(); });
                   })
      .def(
          "memory_bytes",
          [](const Quantized& self) {
            return self.read([](const auto& it) { return it.memory_bytes(); });
          },
          "Allocated bytes, exactly.");
}

// ---- functions and BatchedKVQuantizer

KVQuantizerOptions make_options(const CodebookArgument& codebook, const Array& scaling_factors,
                                double outlier_fraction, int64_t block_size) {
  return {.codebook = levels_of(codebook),
          .scaling_factors = scales_of("scaling_factors", scaling_factors),
          .outlier_fraction = outlier_fraction,
          .block_size = block_size};
}

BatchedKVQuantizer make_quantizer(const CodebookArgument& codebook, const Array& scaling_factors,
                                  double outlier_fraction, int64_t block_size) {
  auto scales = scales_of("scaling_factors", scaling_factors);
  return BatchedKVQuantizer(levels_of(codebook), std::move(scales), outlier_fraction, block_size);
}

// A padded batch as it came in.
struct Batch {
  Batch(const Array& x, const Array& attention_mask)
      : framework(x.framework()), values("x", x), mask("attention_mask", attention_mask) {
    check_arg(x.is_given(), "x can't be None");
  }

  Framework framework;
  Floats<4> values;
  Mask mask;
};

// quantize(values, mask) without the GIL.
template <class Fn>
Quantized quantized(const Batch& batch, Fn&& quantize) {
  const auto made = [&] {
    const nb::gil_scoped_release released;
    return quantize(batch.values.view(), batch.mask.view());
  };
  return {made(), batch.framework};
}

Quantized quantize_batch(const std::string& side, const Array& x, const Array& attention_mask,
                         const KVQuantizerOptions& options,
                         const std::optional<KeyThresholds>& thresholds) {
  return quantized(Batch(x, attention_mask), [&](auto values, auto mask) {
    return fused_quantize_batch(side_of(side), values, mask, options, given(thresholds));
  });
}

Quantized quantize_one(const std::string& side, const Array& x, const KVQuantizerOptions& options,
                       const std::optional<KeyThresholds>& thresholds) {
  const Floats<3> values("x", x);
  check_arg(x.is_given(), "x can't be None");
  const auto made = [&] {
    const nb::gil_scoped_release released;
    return fused_quantize(side_of(side), values.view(), options, given(thresholds));
  };
  return {made(), x.framework()};
}

void append_batch(Quantized& cache, const Array& x, const Array& attention_mask) {
  const Batch batch(x, attention_mask);
  QuantizedKVCache& own = cache.own();
  cache.guard().run([&] { fused_append_batch(own, batch.values.view(), batch.mask.view()); });
}

AnyResult<float> dequantize_one(const Quantized& cache) {
  auto out = batch_view<float>(cache, [](const auto& it) { return fused_dequantize(it); });
  out.result.shape.erase(out.result.shape.begin());
  return out;
}

using Append = void (BatchedKVQuantizer::*)(QuantizedKVCache&, TensorView<const float, 4>,
                                            TensorView<const uint8_t, 2>) const;

template <Append kAppend>
void append(const BatchedKVQuantizer& self, Quantized& cache, const Array& x, const Array& mask) {
  const Batch batch(x, mask);
  QuantizedKVCache& own = cache.own();
  cache.guard().run([&] { (self.*kAppend)(own, batch.values.view(), batch.mask.view()); });
}

void bind_functions(nb::module_& module) {
  module.def(
      "get_sequence_lengths",
      [](const LeadingArray& attention_mask) -> Result<int64_t> {
        check_arg(attention_mask.is_given(), "attention_mask can't be None");
        auto lengths = get_sequence_lengths(Mask("attention_mask", attention_mask).view());
        const auto count = std::ssize(lengths);
        return {std::move(lengths), {count}, attention_mask.framework()};
      },
      "attention_mask"_a, "Real tokens of each row of a mask [batch, seq_len]: int64 [batch].");
  nb::class_<KVQuantizerOptions>(module, "KVQuantizerOptions",
                                 "How keys or values of a padded batch are quantized.")
      .def(nb::new_(&make_options), "codebook"_a = "nuq3", "scaling_factors"_a.none() = nb::none(),
           "outlier_fraction"_a = 0.01, "block_size"_a = 256,
           "codebook: a name or levels [2^bits]; scaling_factors [num_heads, head_dim], None for\n"
           "units; outlier_fraction in [0, 0.05]; block_size in tokens.")
      .def_ro("outlier_fraction", &KVQuantizerOptions::outlier_fraction)
      .def_ro("block_size", &KVQuantizerOptions::block_size);
  module.def("fused_quantize_batch", &quantize_batch, "side"_a, "x"_a, "attention_mask"_a.none(),
             "options"_a, "thresholds"_a = nb::none(),
             "Quantizes x [batch, num_heads, seq_len, head_dim], side 'keys' or 'values', mask\n"
             "[batch, seq_len] or None.");
  module.def("fused_quantize", &quantize_one, "side"_a, "x"_a, "options"_a,
             "thresholds"_a = nb::none(),
             "Quantizes one sequence x [num_heads, seq_len, head_dim], side 'keys' or 'values'.");
  module.def("fused_append_batch", &append_batch, "cache"_a, "x"_a,
             "attention_mask"_a.none() = nb::none(),
             "Adds tokens to every sequence; earlier bytes stay as they are.");
  module.def("fused_dequantize_batch", &decoded, "cache"_a,
             "Decoded float32 [batch, num_heads, seq_len, head_dim], zeros in padding.");
  module.def("fused_dequantize", &dequantize_one, "cache"_a,
             "Decoded float32 [num_heads, seq_len, head_dim] of a single sequence.");
}

void bind_class(nb::module_& module) {
  using Self = BatchedKVQuantizer;
  nb::class_<Self>(module, "BatchedKVQuantizer",
                   "Quantizes keys or values of padded batches, with the options kept.")
      .def(nb::new_(&make_quantizer), "codebook"_a = "nuq3",
           "scaling_factors"_a.none() = nb::none(), "outlier_fraction"_a = 0.01,
           "block_size"_a = 256, "The arguments of KVQuantizerOptions.")
      .def_prop_ro("options", [](const Self& self) { return self.options(); })
      .def(
          "quantize_keys",
          [](const Self& self, const Array& x, const Array& attention_mask,
             const std::optional<KeyThresholds>& thresholds) {
            return quantized(Batch(x, attention_mask), [&](auto values, auto mask) {
              return self.quantize_keys(values, mask, given(thresholds));
            });
          },
          "x"_a, "attention_mask"_a.none() = nb::none(), "thresholds"_a = nb::none(),
          "x [batch, num_heads, seq_len, head_dim] float32; attention_mask [batch, seq_len], 1 "
          "for\n"
          "real tokens, which are consecutive; None: all are real.")
      .def(
          "quantize_values",
          [](const Self& self, const Array& x, const Array& attention_mask) {
            return quantized(Batch(x, attention_mask), [&](auto values, auto mask) {
              return self.quantize_values(values, mask);
            });
          },
          "x"_a, "attention_mask"_a.none() = nb::none(), "As quantize_keys.")
      .def("append_keys", &append<&Self::append_keys>, "cache"_a, "x"_a,
           "attention_mask"_a.none() = nb::none(), "Adds tokens; earlier bytes don't change.")
      .def("append_values", &append<&Self::append_values>, "cache"_a, "x"_a,
           "attention_mask"_a.none() = nb::none(), "Adds tokens; earlier bytes don't change.")
      .def(
          "dequantize", [](const Self&, const Quantized& cache) { return decoded(cache); },
          "cache"_a, "Decoded float32 [batch, num_heads, seq_len, head_dim], zeros in padding.")
      .def(
          "extract_key_outliers_to_sparse",
          [](const Self& self, const Quantized& cache, int64_t head_idx) {
            return cache.read(
                [&](const auto& it) { return self.extract_key_outliers_to_sparse(it, head_idx); });
          },
          "cache"_a, "head_idx"_a, "One matrix [head_dim, real tokens] for each sequence.")
      .def(
          "extract_value_outliers_to_sparse",
          [](const Self& self, const Quantized& cache, int64_t head_idx) {
            return cache.read([&](const auto& it) {
              return self.extract_value_outliers_to_sparse(it, head_idx);
            });
          },
          "cache"_a, "head_idx"_a, "One matrix [real tokens, head_dim] for each sequence.");
}

}  // namespace

void bind_quantizer(nb::module_& module) {
  bind_cache_class(module);
  bind_functions(module);
  bind_class(module);
}

}  // namespace kvquant::python
