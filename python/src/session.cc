// src/model/session.h in Python.
#include "model/session.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "base/check.h"
#include "bench/result.h"
#include "bindings.h"
#include "engine.h"
#include "specs.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

struct Conversation {
  Conversation(std::shared_ptr<Engine> running, const SessionOptions& options)
      : engine(std::move(running)), session(engine->model, options) {}

  std::shared_ptr<Engine> engine;
  Session session;

  template <class Fn>
  decltype(auto) run(Fn&& fn) {
    return engine->guard.run(std::forward<Fn>(fn));
  }
};

// Text is encoded as `kvquant generate` does it, BOS only at the beginning; else ids.
std::vector<int32_t> prompt_tokens(const Conversation& self, nb::handle prompt) {
  if (!nb::isinstance<nb::str>(prompt)) return to_tokens("tokens", prompt);
  const auto bos =
      self.session.length() == 0 ? Tokenizer::Bos::kAsConfigured : Tokenizer::Bos::kNever;
  return self.engine->model.tokenizer().encode(nb::cast<std::string>(prompt),
                                               Tokenizer::Special::kParse, bos);
}

AnyResult<float> forward(Conversation& self, nb::handle prompt) {
  const auto tokens = prompt_tokens(self, prompt);
  std::vector<float> logits;
  self.run([&] {
    const auto last = self.session.feed(tokens, check_interrupt);
    logits.assign(last.begin(), last.end());
  });
  const auto count = std::ssize(logits);
  return {{std::move(logits), {count}}};
}

AnyResult<double> score(Conversation& self, nb::handle prompt) {
  const auto tokens = prompt_tokens(self, prompt);
  auto scores = self.run([&] { return self.session.score(tokens, check_interrupt); });
  const auto count = std::ssize(scores);
  return {{std::move(scores), {count}}};
}

const char* name_of(StopReason reason) {
  switch (reason) {
    case StopReason::kStopToken: return "stop_token";
    case StopReason::kMaxTokens: return "max_tokens";
    case StopReason::kContextFull: return "context_full";
    case StopReason::kCaller: return "caller";
  }
  return "";
}

using OnToken = std::function<bool(int32_t)>;

// Calls back with the GIL, and looks for Ctrl-C at every token.
OnToken with_gil(const OnToken& on_token) {
  return [&on_token](int32_t token) {
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    return !on_token || on_token(token);
  };
}

nb::dict generate_text(Conversation& self, nb::handle prompt, const GenerateOptions& options,
                       const OnToken& on_token) {
  const auto tokens = prompt_tokens(self, prompt);
  const Generation out = self.run(
      [&] { return generate(self.session, tokens, options, with_gil(on_token), check_interrupt); });
  StreamDecoder decoder(self.engine->model.tokenizer());
  std::string text;
  for (const int32_t token : out.tokens) text += decoder.next(token);
  text += decoder.finish();
  nb::dict result;
  result["tokens"] = out.tokens;
  result["text"] = text;
  result["stop"] = name_of(out.stop);
  result["num_prompt_tokens"] = out.num_prompt_tokens;
  result["prompt_s"] = out.prompt_s;
  result["generation_s"] = out.generation_s;
  return result;
}

using Class = nb::class_<Conversation>;

void bind_generate(Class& cls) {
  cls.def(
      "generate",
      [](Conversation& self, nb::handle prompt, int64_t max_tokens, float temperature, int top_k,
         float top_p, float min_p, float repeat_penalty, uint64_t seed,
         const std::optional<std::vector<int32_t>>& stop_tokens, const OnToken& on_token) {
        return generate_text(
            self, prompt,
            {.max_tokens = max_tokens,
             .sampler = {.temperature = temperature,
                         .top_k = top_k,
                         .top_p = top_p,
                         .min_p = min_p,
                         .repeat_penalty = repeat_penalty,
                         .seed = seed},
             .stop_tokens =
                 stop_tokens ? *stop_tokens : self.engine->model.checkpoint().eos_token_ids()},
            on_token);
      },
      "prompt"_a, "max_tokens"_a = 128, "temperature"_a = 0.0f, "top_k"_a = 40, "top_p"_a = 0.95f,
      "min_p"_a = 0.05f, "repeat_penalty"_a = 1.0f, "seed"_a = 42, "stop_tokens"_a = nb::none(),
      "on_token"_a.none() = nb::none(),
      nb::sig("def generate(self, prompt: str | kvquant._types.Tokens, max_tokens: int = 128, "
              "temperature: float = 0.0, top_k: int = 40, top_p: float = 0.95, min_p: float = "
              "0.05, repeat_penalty: float = 1.0, seed: int = 42, stop_tokens: "
              "collections.abc.Sequence[int] | None = None, on_token: "
              "collections.abc.Callable[[int], bool] | None = None) -> kvquant._types.Generation"),
      "Feeds the prompt (text, or token ids) and samples until a stop token (by default those of\n"
      "the model), max_tokens, the end of the context, or on_token(id) returns False. temperature\n"
      "0 is greedy. Returns tokens, text, stop ('stop_token', 'max_tokens', 'context_full',\n"
      "'caller'), num_prompt_tokens, prompt_s, generation_s.");
}

void bind_state(Class& cls) {
  cls.def(
         "truncate",
         [](Conversation& self, int64_t length) {
           self.run([&] { self.session.truncate(length); });
         },
         "length"_a, "Forgets the last tokens until length are left; as KvCache.truncate.")
      .def(
          "restart", [](Conversation& self) { self.run([&] { self.session.restart(); }); },
          "Forgets everything.")
      .def(
          "save",
          [](Conversation& self, const Path& path) {
            self.run([&] { self.session.save(path.string(), version()); });
          },
          "path"_a, "Writes the cache and its tokens.")
      .def(
          "load",
          [](Conversation& self, const Path& path) {
            self.run([&] { self.session.load(path.string()); });
          },
          "path"_a, "Goes on from a file of the same model, spec, mode and calibration.")
      .def(
          "memory_bytes",
          [](Conversation& self) {
            return self.run([&] { return self.session.cache().memory_bytes(); });
          },
          "Allocated bytes of the cache.")
      .def_prop_ro(
          "length",
          [](Conversation& self) { return self.run([&] { return self.session.length(); }); })
      .def_prop_ro("context", [](const Conversation& self) { return self.session.context(); })
      .def_prop_ro("num_compressed_tokens",
                   [](Conversation& self) {
                     return self.run([&] { return self.session.num_compressed_tokens(); });
                   })
      .def_prop_ro("tokens",
                   [](Conversation& self) {
                     return self.run([&] {
                       const auto tokens = self.session.tokens();
                       return std::vector<int32_t>(tokens.begin(), tokens.end());
                     });
                   })
      .def_prop_ro("spec", [](const Conversation& self) { return self.session.cache().spec(); });
}

}  // namespace

void bind_session(nb::module_& module) {
  Class cls(module, "Session", "One conversation with a model over a compressed cache.");
  cls.def(
         nb::new_([](std::shared_ptr<Engine> model, const SpecArgument& kv, const std::string& mode,
                     int64_t context, int64_t ubatch) {
           const SessionOptions options{
               .spec = to_spec(kv), .mode = parse_mode(mode), .context = context, .ubatch = ubatch};
           Guard& guard = model->guard;
           return guard.run(
               [&] { return std::make_unique<Conversation>(std::move(model), options); });
         }),
         "model"_a, "kv"_a = "fp16", "mode"_a = "as-served", "context"_a = 0, "ubatch"_a = 512,
         "kv: a spec. context: most tokens, 0 for the model's. ubatch: tokens that go through the\n"
         "layers at once.")
      .def("forward", &forward, "tokens"_a,
           nb::sig("def forward(self, tokens: str | kvquant._types.Tokens) -> numpy.ndarray"),
           "Feeds text or token ids; the logits after the last one, float32 [vocab_size].")
      .def("feed", &forward, "tokens"_a,
           nb::sig("def feed(self, tokens: str | kvquant._types.Tokens) -> numpy.ndarray"),
           "The same as forward.")
      .def("score", &score, "tokens"_a,
           nb::sig("def score(self, tokens: str | kvquant._types.Tokens) -> numpy.ndarray"),
           "Feeds text or token ids; the log-likelihood in nats of each token but the first,\n"
           "float64 [num_tokens - 1].");
  bind_generate(cls);
  bind_state(cls);
}

}  // namespace kvquant::python
