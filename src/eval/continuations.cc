#include "eval/continuations.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/check.h"
#include "eval/context_reader.h"
#include "model/runner.h"

namespace kvquant {
namespace {

void check(const Model& model, std::span<const Continuation> requests,
           const SampleRunOptions& options) {
  check_arg(options.ubatch > 0, "score_continuations: ubatch must be positive");
  const ModelConfig& config = model.config();
  check_spec_fits(options.spec, static_cast<int>(config.num_layers),
                  static_cast<int>(config.head_dim));
  check_spec_built(options.spec);
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::string name = "score_continuations: request " + std::to_string(i);
    const auto& [context, tokens] = requests[i];
    check_arg(!context.empty() && !tokens.empty(), name + " has an empty context or continuation");
    const int64_t length = std::ssize(context) + std::ssize(tokens);
    check_arg(length - 1 <= config.max_context,  // the last token isn't read
              name + " has " + std::to_string(length) + " tokens, the model's context " +
                  std::to_string(config.max_context));
    for (const int32_t token : tokens) {  // of the context: checked where it is read
      check_arg(0 <= token && token < config.vocab_size, name + ": token " + std::to_string(token) +
                                                             " is not in the vocabulary of " +
                                                             std::to_string(config.vocab_size));
    }
  }
}

// The order in which contexts share most.
std::vector<size_t> order_of(std::span<const Continuation> requests) {
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::ranges::lexicographical_compare(requests[a].context, requests[b].context);
  });
  return order;
}

// What devices set aside: a context and, as forks of it, the beginnings that are kept and its
// continuations.
RunnerOptions runner_options(std::span<const Continuation> requests,
                             const std::vector<size_t>& order, const SampleRunOptions& options) {
  RunnerOptions out{
      .spec = options.spec, .mode = options.mode, .max_tokens = 1, .chunk_tokens = options.ubatch};
  int64_t num_kept = 0, most_alike = 0, num_alike = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const bool is_like_last =
        i > 0 && std::ranges::equal(requests[order[i]].context, requests[order[i - 1]].context);
    num_alike = is_like_last ? num_alike + 1 : 1;
    most_alike = std::max(most_alike, num_alike);
  }
  for (const auto& [context, tokens] : requests) {
    num_kept = std::max<int64_t>(num_kept, std::ssize(context) / options.ubatch);
    out.max_tokens = std::max(out.max_tokens, std::ssize(context) + std::ssize(tokens) - 1);
    out.fork_tokens = std::max<int64_t>(out.fork_tokens, std::ssize(tokens));
  }
  out.num_forks = num_kept + most_alike;
  return out;
}

}  // namespace

std::vector<ChoiceLikelihood> score_continuations(Model& model,
                                                  std::span<const Continuation> requests,
                                                  const SampleRunOptions& options,
                                                  const Progress& progress) {
  check(model, requests, options);
  const std::vector<size_t> order = order_of(requests);
  const auto runner = make_runner(model, runner_options(requests, order, options));
  ContextReader reader(*runner, options.ubatch);
  const auto context_at = [&](size_t at) {  // without the token that predicts the first one
    if (at == order.size()) return std::span<const int32_t>();
    const auto context = requests[order[at]].context;
    return context.first(context.size() - 1);
  };
  std::vector<ChoiceLikelihood> out(requests.size());
  size_t begin = 0;
  while (begin < order.size()) {
    const auto context = requests[order[begin]].context;
    size_t end = begin + 1;
    while (end < order.size() && std::ranges::equal(requests[order[end]].context, context)) ++end;
    const Runner::SequenceId sequence = reader.read(context_at(begin), context_at(end));
    EvalQuestion question{.tokens = {context.back()}};
    for (size_t i = begin; i < end; ++i) {
      const auto tokens = requests[order[i]].tokens;
      question.choices.push_back({.tokens = {tokens.begin(), tokens.end()}});
    }
    const auto scores = score_choices(model, *runner, sequence, question, options.ubatch);
    for (size_t i = begin; i < end; ++i) out[order[i]] = scores[i - begin];
    runner->drop(sequence);
    begin = end;
    report(progress, static_cast<int64_t>(end), std::ssize(requests));
  }
  return out;
}

}  // namespace kvquant
