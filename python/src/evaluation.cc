// src/eval/perplexity.h and src/eval/continuations.h in Python; kvquant/evaluation.py and
// kvquant/lm_eval make tokens of texts.
#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "engine.h"
#include "eval/continuations.h"
#include "eval/perplexity.h"
#include "specs.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

nb::dict fields(const PerplexityResult& result, CacheMode mode) {
  nb::dict out;
  out["spec"] = result.spec.text;
  out["spec_resolved"] = resolved(with_windows(result.spec, mode));
  out["mode"] = mode_name(mode);
  out["perplexity"] = result.perplexity;
  out["ppl_stderr"] = result.ppl_stderr;
  out["ppl_delta"] = result.ppl_delta;
  out["ppl_delta_rel"] = result.ppl_delta_rel;
  out["nll_delta_mean"] = result.nll_delta_mean;
  out["nll_delta_sd"] = result.nll_delta_sd;
  out["kl_mean"] = result.kl_mean;
  out["kl_median"] = result.kl_median;
  out["kl_p99"] = result.kl_p99;
  out["kl_max"] = result.kl_max;
  out["top1_agreement"] = result.top1_agreement;
  out["true_bits"] = result.true_bits;
  out["cache_bytes"] = result.cache_bytes;
  out["tokens"] = result.tokens;
  out["compressed_tokens"] = result.compressed_tokens;
  return out;
}

std::vector<nb::dict> perplexities(Engine& model, nb::handle text,
                                   const std::vector<SpecArgument>& specs,
                                   const PerplexityOptions& options) {
  const auto tokens = to_tokens("tokens", text);
  std::vector<CacheSpec> parsed;
  for (const SpecArgument& spec : specs) parsed.push_back(to_spec(spec));
  const auto results = model.guard.run(
      [&] { return evaluate_perplexity(model.model, tokens, parsed, options, check_interrupt); });
  std::vector<nb::dict> out;
  for (const PerplexityResult& result : results) out.push_back(fields(result, options.mode));
  return out;
}

using OnProgress = std::function<void(int64_t, int64_t)>;
using Score = std::tuple<double, bool, int64_t>;

std::vector<Score> likelihoods(Engine& model,
                               const std::vector<std::pair<nb::object, nb::object>>& requests,
                               const SampleRunOptions& options, const OnProgress& on_progress) {
  std::vector<std::vector<int32_t>> tokens;
  for (const auto& [context, continuation] : requests) {
    tokens.push_back(to_tokens("a context", context));
    tokens.push_back(to_tokens("a continuation", continuation));
  }
  std::vector<Continuation> views;
  for (size_t i = 0; i < tokens.size(); i += 2) views.push_back({tokens[i], tokens[i + 1]});
  const auto progress = [&](int64_t done, int64_t total) {
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (on_progress) on_progress(done, total);
  };
  const auto scores =
      model.guard.run([&] { return score_continuations(model.model, views, options, progress); });
  std::vector<Score> out;
  for (const ChoiceLikelihood& score : scores) {
    out.emplace_back(score.log_likelihood, score.is_greedy, score.compressed_tokens);
  }
  return out;
}

void bind_continuations(nb::module_& module) {
  module.def(
      "score_continuations",
      [](Engine& model, const std::vector<std::pair<nb::object, nb::object>>& requests,
         const SpecArgument& kv, const std::string& mode, int64_t ubatch,
         const OnProgress& on_progress) {
        return likelihoods(model, requests,
                           {.spec = to_spec(kv), .mode = parse_mode(mode), .ubatch = ubatch},
                           on_progress);
      },
      "model"_a, "requests"_a, "kv"_a = "fp16", "mode"_a = "strict", "ubatch"_a = 512,
      "on_progress"_a.none() = nb::none(),
      nb::sig("def score_continuations(model: Model, requests: collections.abc.Sequence[tuple["
              "kvquant._types.Tokens, kvquant._types.Tokens]], kv: str | CacheSpec = 'fp16', "
              "mode: str = 'strict', ubatch: int = 512, on_progress: "
              "collections.abc.Callable[[int, int], None] | None = None) -> "
              "list[tuple[float, bool, int]]"),
      "Likelihoods of continuations, requests of (context, continuation) as token ids: for each\n"
      "the sum of its tokens' log-likelihoods in nats, whether each was the most likely one, and\n"
      "how many compressed tokens were read. A context that several share is read once.\n"
      "on_progress(done, total) counts requests.");
}

}  // namespace

void bind_evaluation(nb::module_& module) {
  bind_continuations(module);
  module.def(
      "evaluate_tokens",
      [](Engine& model, nb::handle tokens, const std::vector<SpecArgument>& specs, int64_t window,
         int64_t stride, int64_t max_windows, const std::string& mode, int64_t ubatch) {
        return perplexities(model, tokens, specs,
                            {.window = window,
                             .stride = stride,
                             .max_windows = max_windows,
                             .mode = parse_mode(mode),
                             .ubatch = ubatch});
      },
      "model"_a, "tokens"_a, "specs"_a, "window"_a, "stride"_a, "max_windows"_a, "mode"_a,
      "ubatch"_a,
      nb::sig("def evaluate_tokens(model: Model, tokens: kvquant._types.Tokens, specs: "
              "collections.abc.Sequence[str | CacheSpec], window: int, stride: int, max_windows: "
              "int, mode: str, ubatch: int) -> list[dict[str, typing.Any]]"),
      "What evaluate_perplexity does with the tokens of a text: a dict for each spec.");
}

}  // namespace kvquant::python
