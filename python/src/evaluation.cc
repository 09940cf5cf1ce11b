// src/eval/perplexity.h in Python; kvquant/evaluation.py makes tokens of texts.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "engine.h"
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

}  // namespace

void bind_evaluation(nb::module_& module) {
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
