// src/model/model.h, its tokenizer and the collector of activations in Python.
#include "model/model.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <map>

#include "base/check.h"
#include "bench/result.h"
#include "bindings.h"
#include "engine.h"
#include "model/activation_collector.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

ModelOptions options_of(int num_threads, const std::string& precision, const std::string& weights,
                        int64_t context) {
  static const std::map<std::string, std::optional<Precision>> precisions = {
      {"auto", {}}, {"f32", Precision::kF32}, {"bf16", Precision::kBF16}};
  static const std::map<std::string, WeightStorage> storages = {{"auto", WeightStorage::kAuto},
                                                                {"bf16", WeightStorage::kBF16},
                                                                {"int8", WeightStorage::kInt8}};
  check_arg(precisions.contains(precision),
            "precision is '" + precision + "', not 'auto', 'f32' or 'bf16'");
  check_arg(storages.contains(weights),
            "weights is '" + weights + "', not 'auto', 'bf16' or 'int8'");
  check_arg(num_threads >= 0, "num_threads is " + std::to_string(num_threads) + ", not 0 or more");
  return {.num_threads = num_threads,
          .pin = ThreadPool::Pin::kNo,
          .precision = precisions.at(precision),
          .weights = storages.at(weights),
          .context = context};
}

std::shared_ptr<Engine> load(const Path& path, int num_threads, const std::string& precision,
                             const std::string& weights, int64_t context,
                             const std::optional<Path>& calibration) {
  const ModelOptions options = options_of(num_threads, precision, weights, context);
  const nb::gil_scoped_release released;
  auto engine = std::make_shared<Engine>(Model::load(find_model(path.string()), options));
  if (calibration) engine->model.set_calibration(load_calibration(calibration->string()));
  return engine;
}

nb::dict config_of(const Engine& self) {
  const ModelConfig& config = self.model.config();
  nb::dict out;
  out["architecture"] = config.architecture;
  out["name"] = config.name;
  out["hidden"] = config.hidden;
  out["ffn"] = config.ffn;
  out["num_layers"] = config.num_layers;
  out["num_q_heads"] = config.num_q_heads;
  out["num_kv_heads"] = config.num_kv_heads;
  out["head_dim"] = config.head_dim;
  out["vocab_size"] = config.vocab_size;
  out["max_context"] = config.max_context;
  out["sliding_window"] = config.sliding_window;
  out["rope_theta"] = config.rope_theta;
  out["rope_scaling"] = rope_scaling_name(config.rope_scaling.type);
  return out;
}

using Message = std::map<std::string, std::string>;

std::string render(const Engine& self, const std::vector<Message>& messages,
                   const std::string& name) {
  const TokenizerData& data = self.model.checkpoint().tokenizer();
  const ChatFormat format =
      name.empty() ? recognise_chat_template(data.chat_template) : chat_format_named(name);
  std::vector<ChatMessage> turns;
  for (const Message& message : messages) {
    check_arg(message.contains("role") && message.contains("content"),
              "a message has no 'role' or no 'content'");
    turns.push_back({message.at("role"), message.at("content")});
  }
  const auto text = [&](int32_t id) { return id < 0 ? std::string() : data.tokens[id]; };
  return render_chat(format, turns, {text(data.bos), text(data.eos)});
}

void bind_model_class(nb::module_& module) {
  nb::class_<Engine>(module, "Model", "A checkpoint ready to run on the CPU.")
      .def_static("load", &load, "path"_a, "num_threads"_a = 0, "precision"_a = "auto",
                  "weights"_a = "auto", "context"_a = 0, "calibration"_a = nb::none(),
                  "path: a GGUF file, a Hugging Face directory, 'smollm2' or 'embedded'.\n"
                  "num_threads 0: one for each core. precision 'auto', 'f32', 'bf16'; weights\n"
                  "'auto', 'bf16', 'int8'. context: tokens, for dynamic RoPE scaling only.\n"
                  "calibration: a file of kvquant calibrate.")
      .def_prop_ro("path", [](const Engine& self) { return self.model.path(); })
      .def_prop_ro("config", &config_of, "Its hyperparameters.")
      .def_prop_ro("fingerprint",
                   [](const Engine& self) { return self.model.checkpoint().fingerprint(); })
      .def_prop_ro(
          "tokenizer",
          [](const Engine& self) -> const Tokenizer& { return self.model.tokenizer(); },
          nb::rv_policy::reference_internal)
      .def_prop_ro("eos_token_ids",
                   [](const Engine& self) { return self.model.checkpoint().eos_token_ids(); })
      .def_prop_ro(
          "chat_template",
          [](const Engine& self) { return self.model.checkpoint().tokenizer().chat_template; },
          "Jinja text; '' when the model has none.")
      .def("apply_chat_template", &render, "messages"_a, "name"_a = "",
           nb::sig("def apply_chat_template(self, messages: "
                   "collections.abc.Sequence[collections.abc.Mapping[str, str]], name: str = '') "
                   "-> str"),
           "Messages of 'role' and 'content' as a prompt that ends where the answer begins. name:\n"
           "of a template instead of the model's own, as --chat-template of kvquant chat.")
      .def_prop_ro("num_parameters",
                   [](const Engine& self) { return self.model.checkpoint().num_parameters(); })
      .def_prop_ro("weight_bytes",
                   [](Engine& self) { return self.model.transformer().weight_bytes(); });
}

void bind_tokenizer(nb::module_& module) {
  nb::class_<Tokenizer>(module, "Tokenizer", "Byte-pair tokenizer of a model.")
      .def(
          "encode",
          [](const Tokenizer& self, const std::string& text, bool add_special_tokens,
             bool parse_special) {
            return self.encode(
                text, parse_special ? Tokenizer::Special::kParse : Tokenizer::Special::kAsText,
                add_special_tokens ? Tokenizer::Bos::kAsConfigured : Tokenizer::Bos::kNever);
          },
          "text"_a, "add_special_tokens"_a = true, "parse_special"_a = true,
          "Token ids. add_special_tokens: BOS in front, where the model is configured so.\n"
          "parse_special: '<|im_end|>' in the text is a token, not ten letters.")
      .def(
          "decode",
          [](const Tokenizer& self, nb::handle tokens, bool skip_special_tokens) {
            const std::string bytes = self.decode(to_tokens("ids", tokens), !skip_special_tokens);
            return nb::steal<nb::str>(PyUnicode_DecodeUTF8(
                bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
          },
          "ids"_a, "skip_special_tokens"_a = true,
          nb::sig("def decode(self, ids: kvquant._types.Tokens, skip_special_tokens: bool = True) "
                  "-> str"),
          "Text of token ids; half a character becomes U+FFFD.")
      .def_prop_ro("vocab_size", &Tokenizer::vocab_size)
      .def_prop_ro("bos_token_id", [](const Tokenizer& self) { return self.data().bos; })
      .def_prop_ro("eos_token_id", [](const Tokenizer& self) { return self.data().eos; });
}

// ---- ActivationCollector

// Keeps the model that it observes; removes its hooks when it goes.
struct Collector {
  Collector(std::shared_ptr<Engine> observed, int64_t max_samples)
      : engine(std::move(observed)), collector(engine->model, max_samples) {}
  ~Collector() {
    try {
      engine->guard.run([&] { collector.remove_hooks(); });
    } catch (const std::exception&) {  // from inside a call: the collector's own destructor does it
    }
  }

  std::shared_ptr<Engine> engine;
  ActivationCollector collector;
};

AnyResult<float> as_array(CollectedActivations activations) {
  const auto& shape = activations.shape;
  return {{std::move(activations.values), {shape[0], shape[1], shape[2], shape[3]}}};
}

void bind_collector(nb::module_& module) {
  nb::class_<Collector>(
      module, "ActivationCollector",
      "Keys (before RoPE) and values of a model's layers, gathered while sessions\n"
      "run it between install_hooks and remove_hooks.")
      .def(nb::new_([](std::shared_ptr<Engine> model, int64_t max_samples) {
             return std::make_unique<Collector>(std::move(model), max_samples);
           }),
           "model"_a, "max_samples"_a = 16)
      .def("install_hooks",
           [](Collector& self) { self.engine->guard.run([&] { self.collector.install_hooks(); }); })
      .def("remove_hooks",
           [](Collector& self) { self.engine->guard.run([&] { self.collector.remove_hooks(); }); })
      .def(
          "increment_sample_count",
          [](Collector& self) {
            self.engine->guard.run([&] { self.collector.increment_sample_count(); });
          },
          "Ends the samples that have begun.")
      .def_prop_ro("num_samples",
                   [](Collector& self) {
                     return self.engine->guard.run([&] { return self.collector.num_samples(); });
                   })
      .def(
          "get_keys",
          [](Collector& self, int64_t layer_idx) {
            return as_array(
                self.engine->guard.run([&] { return self.collector.get_keys(layer_idx); }));
          },
          "layer_idx"_a, "float32 [num_samples, num_kv_heads, seq_len, head_dim], before RoPE.")
      .def(
          "get_queries",
          [](Collector& self, int64_t layer_idx) {
            return as_array(
                self.engine->guard.run([&] { return self.collector.get_queries(layer_idx); }));
          },
          "layer_idx"_a, "float32 [num_samples, num_q_heads, seq_len, head_dim], before RoPE.")
      .def(
          "get_values",
          [](Collector& self, int64_t layer_idx) {
            return as_array(
                self.engine->guard.run([&] { return self.collector.get_values(layer_idx); }));
          },
          "layer_idx"_a, "float32 [num_samples, num_kv_heads, seq_len, head_dim].");
}

}  // namespace

std::vector<int32_t> to_tokens(const char* name, nb::handle tokens) {
  if (nb::isinstance<nb::list>(tokens) || nb::isinstance<nb::tuple>(tokens)) {
    std::vector<int32_t> out;
    if (nb::try_cast(tokens, out)) return out;
    throw nb::type_error((std::string(name) + " holds something else than token ids").c_str());
  }
  const Array array(tokens);
  const auto shape = array.shape(name);
  check_arg(shape.size() == 1,
            std::string(name) + " has the shape " + describe_shape(shape) + ", not [num_tokens]");
  return to_int32(name, array);
}

void bind_model(nb::module_& module) {
  module.def("version", &version, "Version and commit of the engine.");
  bind_tokenizer(module);
  bind_model_class(module);
  bind_collector(module);
  module.def("find_model", &find_model, "name"_a = "",
             "Where a model lies: a path, 'smollm2', 'embedded', or '' for the better of the two.");
  module.def("find_asset", &find_asset, "name"_a, "Where a file of assets/ lies.");
}

}  // namespace kvquant::python
