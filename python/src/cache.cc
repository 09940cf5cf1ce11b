// src/cache/kv_cache.h in Python: the engine's cache with attention over it, for those who bring
// queries, keys and values of a model of their own.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "arrays.h"
#include "base/check.h"
#include "bench/result.h"
#include "bindings.h"
#include "cache/cache_file.h"
#include "engine.h"
#include "guard.h"
#include "layer_files.h"
#include "model/model.h"
#include "ops/attend.h"
#include "quant/scaling_calibration.h"
#include "specs.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

struct CacheOptions {
  KvShape shape;
  CacheSpec spec;
  CacheMode mode = CacheMode::kAsServed;
  std::vector<double> frequencies;  // of RoPE, [head_dim / 2]
  int64_t max_positions = 0;
  Precision precision = Precision::kF32;
  int num_threads = 0;
};

// A cache with what it points to. Keys and values of a chunk come in before RoPE; queries are those
// of the last chunk.
class Cache {
 public:
  using Id = KvCache::SequenceId;

  Cache(const CacheOptions& options, std::shared_ptr<const Calibration> calibration)
      : pool_(options.num_threads, ThreadPool::Pin::kNo),
        rope_(options.max_positions, options.frequencies),
        precision_(options.precision),
        cache_(options.shape, options.spec, options.mode, rope_, pool_, std::move(calibration)) {}

  Guard& guard() { return guard_; }
  KvCache& cache() { return cache_; }
  const KvCache& cache() const { return cache_; }

  // Of the arrays that came in last.
  Framework framework() const { return framework_; }
  void set_framework(Framework framework) { framework_ = framework; }

  // What follows needs the guard.
  void append(int64_t layer, Id id, TensorView<const float, 3> keys,
              TensorView<const float, 3> values) {
    const int64_t first = cache_.length(id);  // moves on with the last layer
    cache_.append(layer, id, keys, values);
    chunks_[id] = {first, keys.shape[0]};
  }

  struct Query {
    bool is_rotated = false;      // else before RoPE
    std::optional<double> scale;  // of the scores; 1 / sqrt(head_dim)
  };

  // query [num_new, num_q_heads, head_dim] of the chunk that was appended last. Returns the same
  // shape.
  std::vector<float> attend(int64_t layer, Id id, TensorView<const float, 3> query,
                            const Query& how) {
    const Chunk chunk = last_chunk(id);
    check_query(query, chunk.num_tokens, how);
    const KvShape& shape = cache_.shape();
    const int64_t num_heads = query.shape[1], group = num_heads / shape.num_kv_heads;
    std::vector<float> rotated = gapless(query), out(rotated.size());
    if (!how.is_rotated) {
      rope(row_major(rotated.data(), {chunk.num_tokens, num_heads, shape.head_dim}),
           chunk.first_position, rope_);
    }
    cache_.prepare_view(layer, id);
    std::vector<AttendJob> jobs;
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const int64_t offset = head * group * shape.head_dim;
      jobs.push_back({.query = rotated.data() + offset,
                      .out = out.data() + offset,
                      .query_stride = num_heads * shape.head_dim,
                      .num_queries = chunk.num_tokens,
                      .first_position = chunk.first_position,
                      .runs = cache_.view(layer, id, head)});
    }
    const double usual = 1 / std::sqrt(static_cast<double>(shape.head_dim));
    kvquant::attend({shape.head_dim, group, static_cast<float>(how.scale.value_or(usual))}, jobs,
                    precision_, pool_);
    return out;
  }

  // Before anything changes: of a chunk of num_tokens.
  void check_query(TensorView<const float, 3> query, int64_t num_tokens, const Query& how) const {
    const KvShape& shape = cache_.shape();
    check_arg(query.shape[0] == num_tokens && query.shape[1] > 0 &&
                  query.shape[1] % shape.num_kv_heads == 0 && query.shape[2] == shape.head_dim,
              "attend: query has the shape " + describe_shape(query.shape) +
                  ", not [tokens of the last chunk = " + std::to_string(num_tokens) +
                  ", a multiple of " + std::to_string(shape.num_kv_heads) + ", " +
                  std::to_string(shape.head_dim) + "]");
    check_arg(!how.scale || (std::isfinite(*how.scale) && *how.scale > 0),
              "attend: scale is " + std::to_string(how.scale.value_or(0)) + ", not positive");
  }

  // Of a sequence whose tokens are not those that were appended last any more.
  void forget_chunk(Id id) { chunks_.erase(id); }

 private:
  struct Chunk {
    int64_t first_position = 0;
    int64_t num_tokens = 0;
  };

  Chunk last_chunk(Id id) const {
    cache_.length(id);  // throws when there is no such sequence
    const auto chunk = chunks_.find(id);
    check_arg(chunk != chunks_.end(),
              "attend: nothing was appended to sequence " + std::to_string(id) + " yet");
    return chunk->second;
  }

  static std::vector<float> gapless(TensorView<const float, 3> x) {
    std::vector<float> out;
    out.reserve(static_cast<size_t>(x.shape[0] * x.shape[1] * x.shape[2]));
    for (int64_t i = 0; i < x.shape[0]; ++i) {
      for (int64_t head = 0; head < x.shape[1]; ++head) {
        const auto row = x.row(i, head);
        out.insert(out.end(), row.begin(), row.end());
      }
    }
    return out;
  }

  Guard guard_;
  ThreadPool pool_;
  RopeTable rope_;
  Precision precision_;
  KvCache cache_;
  std::map<Id, Chunk> chunks_;
  Framework framework_ = Framework::kNumpy;
};

std::vector<double> frequencies_of(int64_t head_dim, double rope_theta, int64_t max_positions,
                                   const std::optional<std::vector<double>>& given) {
  if (!given) return rope_frequencies(head_dim, rope_theta, {}, max_positions);
  check_arg(std::ssize(*given) == head_dim / 2,
            "KvCache: " + std::to_string(given->size()) + " frequencies for a head_dim of " +
                std::to_string(head_dim) + ", which has " + std::to_string(head_dim / 2));
  for (const double frequency : *given) {
    check_arg(std::isfinite(frequency) && frequency >= 0,
              "KvCache: a frequency is " + std::to_string(frequency) +
                  ", not a finite number of at least 0");
  }
  return *given;
}

// What keys are coded with: of a file, or factors per layer; null: neither.
std::shared_ptr<const Calibration> calibration_of(
    const KvShape& shape, const CacheSpec& spec, const std::optional<Path>& file,
    const std::optional<std::vector<Array>>& scaling_factors) {
  check_arg(!file || !scaling_factors,
            "KvCache: calibration and scaling_factors can't be given together");
  if (file) return std::make_shared<const Calibration>(load_calibration(file->string()));
  if (!scaling_factors) return nullptr;
  std::vector<LayerScalingFactors> layers;
  for (const Array& layer : *scaling_factors) layers.push_back(scales_of("scaling_factors", layer));
  const CalibrationShape fitted{shape.num_layers, 0, shape.num_kv_heads, shape.head_dim};
  return std::make_shared<const Calibration>(scaling_calibration(layers, fitted, spec));
}

Precision precision_of(const std::string& name) {
  if (name == "auto") return default_precision();
  if (name == "f32") return Precision::kF32;
  if (name == "bf16") return Precision::kBF16;
  throw std::invalid_argument("precision is '" + name + "', not 'auto', 'f32' or 'bf16'");
}

using Windows = std::variant<int64_t, std::vector<int64_t>>;  // of all layers, or one for each

KvShape shape_of(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim,
                 const Windows& windows) {
  KvShape shape{num_layers, num_kv_heads, head_dim};
  if (const auto* window = std::get_if<int64_t>(&windows)) {
    shape.sliding_window = *window;
  } else {
    shape.layer_windows = std::get<std::vector<int64_t>>(windows);
  }
  return shape;
}

void append(Cache& self, int64_t layer, int64_t sequence, const Array& key, const Array& value) {
  const Floats<3> keys("key", key), values("value", value);
  check_arg(key.is_given() && value.is_given(), "append: key and value can't be None");
  self.set_framework(key.framework());
  self.guard().run([&] { self.append(layer, sequence, keys.view(), values.view()); });
}

struct Place {
  int64_t layer = 0, sequence = 0;
};

Result<float> attend(Cache& self, const Place& at, const LeadingArray& query, const Array& key,
                     const Array& value, const Cache::Query& how) {
  const Floats<3> queries("query", query), keys("key", key), values("value", value);
  check_arg(query.is_given(), "attend: query can't be None");
  check_arg(key.is_given() == value.is_given(), "attend: key and value come together");
  self.set_framework(query.framework());
  auto out = self.guard().run([&] {
    if (key.is_given()) {
      self.check_query(queries.view(), keys.view().shape[0], how);
      self.append(at.layer, at.sequence, keys.view(), values.view());
    }
    return self.attend(at.layer, at.sequence, queries.view(), how);
  });
  return {std::move(out), query.shape("query"), query.framework()};
}

nb::tuple load(Cache& self, const Path& path, const std::string& model_fingerprint) {
  LoadedSequence loaded =
      self.guard().run([&] { return load_cache(self.cache(), model_fingerprint, path.string()); });
  const auto count = std::ssize(loaded.tokens);
  return nb::make_tuple(loaded.id, to_python(Result<int32_t>{std::move(loaded.tokens), {count}}));
}

void save(Cache& self, int64_t sequence, const Path& path, nb::handle tokens,
          const std::string& model_fingerprint) {
  const auto ids = to_tokens("tokens", tokens);
  self.guard().run([&] {
    save_cache(self.cache(), sequence, ids,
               {.kvquant_version = version(), .model_fingerprint = model_fingerprint},
               path.string());
  });
}

nb::tuple read(Cache& self, int64_t layer, int64_t sequence) {
  ReadTokens tokens = self.guard().run([&] { return self.cache().read(layer, sequence); });
  const KvShape& shape = self.cache().shape();
  const std::vector<int64_t> extents = {tokens.num_tokens, shape.num_kv_heads, shape.head_dim};
  return nb::make_tuple(
      to_python(Result<float>{std::move(tokens.keys), extents, self.framework()}),
      to_python(Result<float>{std::move(tokens.values), extents, self.framework()}));
}

int64_t memory_bytes(Cache& self, const std::optional<std::vector<int64_t>>& sequences) {
  return self.guard().run([&] {
    return sequences ? self.cache().memory_bytes(*sequences) : self.cache().memory_bytes();
  });
}

// A method of KvCache under the guard.
template <auto kMethod, class... Arguments>
auto guarded(Cache& self, Arguments... arguments) {
  return self.guard().run([&] { return (self.cache().*kMethod)(arguments...); });
}

// One that changes which tokens a sequence has.
template <auto kMethod, class... Arguments>
void changing(Cache& self, int64_t sequence, Arguments... arguments) {
  self.guard().run([&] {
    (self.cache().*kMethod)(sequence, arguments...);
    self.forget_chunk(sequence);
  });
}

using Class = nb::class_<Cache>;

void bind_sequences(Class& cls) {
  cls.def("add_sequence", &guarded<&KvCache::add_sequence>, "A new, empty sequence: its id.")
      .def("fork", &guarded<&KvCache::fork, int64_t>, "sequence"_a,
           "A new sequence of the same tokens; the two share memory (copy on write).")
      .def("drop", &changing<&KvCache::drop>, "sequence"_a, "Frees what no fork shares.")
      .def("truncate", &changing<&KvCache::truncate, int64_t>, "sequence"_a, "length"_a,
           "Forgets the tokens from length on. Only exact ones (as served the last `recent`) can "
           "be\n"
           "forgotten: ValueError, and nothing has changed, for others.")
      .def("can_truncate", &guarded<&KvCache::can_truncate, int64_t, int64_t>, "sequence"_a,
           "length"_a, "Whether truncate would do it; of a settled sequence.")
      .def("settle", &guarded<&KvCache::settle, int64_t>, "sequence"_a,
           "Ends a chunk once its last layer was attended: encodes what has left the tail.")
      .def("splice", &changing<&KvCache::splice, int64_t, int64_t, int64_t>, "sequence"_a,
           "from_sequence"_a, "first_token"_a, "num_tokens"_a,
           "Appends whole encoded tiles of another sequence; they move to the positions behind.")
      .def("length", &guarded<&KvCache::length, int64_t>, "sequence"_a,
           "Tokens that are in all layers.")
      .def("num_compressed_tokens", &guarded<&KvCache::num_compressed_tokens, int64_t>,
           "sequence"_a, "Tokens that the last query read in compressed form.")
      .def("save", &save, "sequence"_a, "path"_a, "tokens"_a, "model_fingerprint"_a = "",
           nb::sig("def save(self, sequence: int, path: str | os.PathLike, tokens: "
                   "kvquant._types.Tokens, model_fingerprint: str = '') -> None"),
           "Writes a sequence with its token ids (integers [length]); see docs/formats.md.")
      .def("load", &load, "path"_a, "model_fingerprint"_a = "",
           "(id of a new sequence, token ids int32 [length]) of a file that a cache of the same\n"
           "shape, spec, mode, calibration and fingerprint wrote.");
}

void bind_attention_calls(Class& cls) {
  cls.def("append", &append, "layer"_a, "sequence"_a, "key"_a, "value"_a,
          "Appends num_new tokens to one layer: key (before RoPE) and value, float32 [num_new,\n"
          "num_kv_heads, head_dim]. Layers are appended in step: layer 0 first, the next one with\n"
          "the same number of tokens.")
      .def(
          "attend",
          [](Cache& self, int64_t layer, int64_t sequence, const LeadingArray& query,
             const Array& key, const Array& value, bool is_rotated, std::optional<double> scale) {
            return attend(self, {layer, sequence}, query, key, value,
                          {.is_rotated = is_rotated, .scale = scale});
          },
          "layer"_a, "sequence"_a, "query"_a, "key"_a.none() = nb::none(),
          "value"_a.none() = nb::none(), "is_rotated"_a = false, "scale"_a = nb::none(),
          "Appends key and value, when they are given, and attends with query [num_new,\n"
          "num_q_heads, head_dim] of these tokens to all that the layer holds, causally. Query\n"
          "before RoPE, or after it with is_rotated; scale of the scores, 1 / sqrt(head_dim) by\n"
          "default. Returns float32 of query's shape. Before the next layer is appended.")
      .def("read", &read, "layer"_a, "sequence"_a,
           "(keys after RoPE, values), float32 [num_tokens, num_kv_heads, head_dim] each, as the\n"
           "last query reads them: decoded, in the framework of the last append. Costs what the\n"
           "sequence takes in float32; low-rank sides are expanded. Before the next layer is "
           "appended.");
}

void bind_properties(Class& cls) {
  cls.def("memory_bytes", &memory_bytes, "sequences"_a = nb::none(),
          "Allocated bytes, of these sequences as if they shared nothing; by default of all.")
      .def("scratch_bytes", &guarded<&KvCache::scratch_bytes>)
      .def("peak_bytes", &guarded<&KvCache::peak_bytes>,
           "The most that memory and scratch were at a time, since reset_peak.")
      .def("reset_peak", &guarded<&KvCache::reset_peak>)
      .def("set_max_bytes", &guarded<&KvCache::set_max_bytes, int64_t>, "max_bytes"_a,
           "From now on OutOfMemory above it; 0: no limit.")
      .def_prop_ro(
          "spec", [](const Cache& self) { return self.cache().spec(); },
          "With the windows that the mode implies.")
      .def_prop_ro("mode", [](const Cache& self) { return mode_name(self.cache().mode()); })
      .def_prop_ro("num_layers", [](const Cache& self) { return self.cache().shape().num_layers; })
      .def_prop_ro("num_kv_heads",
                   [](const Cache& self) { return self.cache().shape().num_kv_heads; })
      .def_prop_ro("head_dim", [](const Cache& self) { return self.cache().shape().head_dim; });
}

}  // namespace

void bind_cache(nb::module_& module) {
  Class cls(
      module, "KvCache",
      "Keys and values of any number of sequences, stored as a spec says, and attention over\n"
      "them. One layer after the other: append or attend, for all layers of a chunk.");
  cls.def(
      nb::new_([](int64_t num_layers, int64_t num_kv_heads, int64_t head_dim,
                  const SpecArgument& spec, const std::string& mode, double rope_theta,
                  const std::optional<std::vector<double>>& frequencies, int64_t max_positions,
                  const Windows& sliding_window, const std::optional<Path>& calibration,
                  const std::string& precision, int num_threads,
                  const std::optional<std::vector<Array>>& scaling_factors) {
        const KvShape shape = shape_of(num_layers, num_kv_heads, head_dim, sliding_window);
        const CacheSpec parsed = to_spec(spec);
        auto fitted = calibration_of(shape, parsed, calibration, scaling_factors);
        check_arg(num_threads >= 0,
                  "KvCache: num_threads is " + std::to_string(num_threads) + ", not 0 or more");
        check_arg(max_positions > 0,
                  "KvCache: max_positions is " + std::to_string(max_positions) + ", not positive");
        return std::make_shared<Cache>(
            CacheOptions{
                .shape = shape,
                .spec = parsed,
                .mode = parse_mode(mode),
                .frequencies = frequencies_of(head_dim, rope_theta, max_positions, frequencies),
                .max_positions = max_positions,
                .precision = precision_of(precision),
                .num_threads = num_threads},
            std::move(fitted));
      }),
      "num_layers"_a, "num_kv_heads"_a, "head_dim"_a, "spec"_a = "nuq4-1%", "mode"_a = "as-served",
      "rope_theta"_a = 10000.0, "frequencies"_a = nb::none(), "max_positions"_a = 131072,
      "sliding_window"_a = 0, "calibration"_a = nb::none(), "precision"_a = "auto",
      "num_threads"_a = 0, "scaling_factors"_a = nb::none(),
      "spec: a string or CacheSpec. mode: 'as-served' (the chunk's own tokens and the tail are\n"
      "exact) or 'strict' (every token is read as it is stored). frequencies [head_dim / 2]:\n"
      "angles of RoPE between neighbouring positions, instead of those of rope_theta.\n"
      "sliding_window: tokens that a query reads, 0: all; a list says it for each layer.\n"
      "calibration: a file of kvquant calibrate. num_threads 0: one for each core.\n"
      "scaling_factors: instead of a calibration, scales of key channels, one float32\n"
      "[num_kv_heads, head_dim] per layer, of keys before RoPE, around zero points of 0.");
  bind_sequences(cls);
  bind_attention_calls(cls);
  bind_properties(cls);
}

}  // namespace kvquant::python
