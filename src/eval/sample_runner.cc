#include "eval/sample_runner.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/check.h"
#include "eval/choice_scoring.h"
#include "eval/context_reader.h"
#include "model/runner.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

using SequenceId = Runner::SequenceId;

// One question being answered.
struct Answer {
  size_t sample = 0, question = 0;
  SequenceId sequence = 0;
  std::vector<int32_t> tokens{};
  std::string text{};
  int64_t max_tokens = 0;
  EvalStop stop = EvalStop::kLine;
};

class Answering {
 public:
  Answering(Model& model, Runner& runner, int64_t ubatch)
      : model_(model), runner_(runner), ubatch_(ubatch), eos_(model.checkpoint().eos_token_ids()) {}

  // All of a batch's answers, side by side, into its results; their sequences are dropped.
  void run(std::span<const EvalSample> samples, std::span<const size_t> batch,
           std::vector<Answer>& answers, std::span<SampleResult> results) {
    const auto question_of = [&](const Answer& answer) -> const EvalQuestion& {
      return samples[batch[answer.sample]].questions[answer.question];
    };
    std::vector<Answer*> active;
    for (Answer& answer : answers) {
      if (begin(answer, question_of(answer).tokens)) active.push_back(&answer);
    }
    while (!active.empty()) active = step(active);
    for (const Answer& answer : answers) {
      SampleResult& result = results[answer.sample];
      result.answers[answer.question] = answer.text;
      result.scores[answer.question] = score_answer(samples[batch[answer.sample]].metric,
                                                    answer.text, question_of(answer).references);
      result.compressed_tokens =
          std::max(result.compressed_tokens, runner_.num_compressed_tokens(answer.sequence));
      runner_.drop(answer.sequence);
    }
  }

 private:
  // Reads the question; false when the answer is over at once.
  bool begin(Answer& answer, std::span<const int32_t> question) {
    const auto length = std::ssize(question);
    for (int64_t at = 0; at < length; at += ubatch_) {
      const int64_t size = std::min(ubatch_, length - at);
      const ForwardChunk chunk{
          answer.sequence, question.subspan(static_cast<size_t>(at), static_cast<size_t>(size))};
      runner_.forward({&chunk, 1});
      if (at + size == length) read_logits(size - 1, 1);
    }
    return take(answer, 0);
  }

  // One more token for all of them; returns those that go on.
  std::vector<Answer*> step(const std::vector<Answer*>& answers) {
    std::vector<ForwardChunk> chunks;
    for (const Answer* answer : answers) {
      chunks.push_back({answer->sequence, {&answer->tokens.back(), 1}});
    }
    runner_.forward(chunks);
    read_logits(0, std::ssize(chunks));
    std::vector<Answer*> going_on;
    for (size_t i = 0; i < answers.size(); ++i) {
      if (take(*answers[i], static_cast<int64_t>(i))) going_on.push_back(answers[i]);
    }
    return going_on;
  }

  // Of rows of the last forward.
  void read_logits(int64_t first_row, int64_t num_rows) {
    const int64_t vocab = model_.config().vocab_size;
    logits_.reserve_discarding(num_rows * vocab);
    runner_.logits(first_row, row_major(logits_.data(), {num_rows, vocab}));
  }

  static bool has_line(const std::string& text) {
    const size_t word = text.find_first_not_of(" \t\r\n");
    return word != std::string::npos && text.find('\n', word) != std::string::npos;
  }

  bool take(Answer& answer, int64_t row) {
    const Tokenizer& tokenizer = model_.tokenizer();
    const int64_t vocab = model_.config().vocab_size;
    const std::span logits(logits_.data() + row * vocab,
                           static_cast<size_t>(tokenizer.vocab_size()));
    const int32_t token = argmax(logits);
    if (std::find(eos_.begin(), eos_.end(), token) != eos_.end()) return false;
    answer.tokens.push_back(token);
    answer.text = tokenizer.decode(answer.tokens);
    return std::ssize(answer.tokens) < answer.max_tokens &&
           (answer.stop == EvalStop::kNothing || !has_line(answer.text));
  }

  Model& model_;
  Runner& runner_;
  int64_t ubatch_;
  std::vector<int32_t> eos_;
  Buffer<float> logits_;  // [rows of one call, vocab_size]
};

void check_samples(const Model& model, std::span<const EvalSample> samples,
                   const SampleRunOptions& options) {
  check_arg(options.ubatch > 0, "eval: ubatch must be positive");
  check_spec_fits(options.spec, static_cast<int>(model.config().num_layers),
                  static_cast<int>(model.config().head_dim));
  check_spec_built(options.spec);
  for (const EvalSample& sample : samples) {
    const bool by_likelihood = asks_likelihoods(sample);
    check_arg(!sample.context.empty() && (by_likelihood || sample.max_new_tokens > 0),
              sample.task + ": a sample has no context or no room for an answer");
    for (const EvalQuestion& question : sample.questions) {
      check_arg(!question.tokens.empty(), sample.task + ": a question is empty");
      const auto is_empty = [](const EvalChoice& choice) { return choice.tokens.empty(); };
      const auto& choices = question.choices;
      check_arg(!by_likelihood ||
                    (std::none_of(choices.begin(), choices.end(), is_empty) &&
                     0 <= question.right_choice && question.right_choice < std::ssize(choices)),
                sample.task + ": a question has an empty choice or no right one");
    }
    check_arg(num_tokens(sample) <= model.config().max_context,
              sample.task + ": a sample of " + std::to_string(num_tokens(sample)) +
                  " tokens is longer than the model's context of " +
                  std::to_string(model.config().max_context));
  }
}

// What devices set aside: the contexts of a batch and, as forks of them, the beginnings that are
// kept and what is read behind contexts.
RunnerOptions runner_options(std::span<const EvalSample> samples, const SampleBatches& batches,
                             const SampleRunOptions& options) {
  RunnerOptions out{.spec = options.spec, .mode = options.mode, .max_tokens = 1};
  int64_t num_kept = 0, most_side_by_side = 1, most_answers = 0;
  for (const auto& batch : batches) {
    int64_t num_answers = 0;
    for (const size_t i : batch) {
      const EvalSample& sample = samples[i];
      const int64_t context = std::ssize(sample.context);
      num_kept = std::max(num_kept, context / options.ubatch);
      out.max_tokens = std::max(out.max_tokens, num_tokens(sample));
      out.fork_tokens = std::max(out.fork_tokens, num_tokens(sample) - context);
      if (!asks_likelihoods(sample)) num_answers += std::ssize(sample.questions);
      for (const EvalQuestion& question : sample.questions) {
        most_side_by_side = std::max<int64_t>(most_side_by_side, std::ssize(question.choices));
      }
    }
    out.num_sequences = std::max<int64_t>(out.num_sequences, std::ssize(batch));
    most_answers = std::max(most_answers, num_answers);
  }
  out.num_forks = num_kept + std::max(most_answers, most_side_by_side);
  out.chunk_tokens = std::max(options.ubatch, most_answers);
  return out;
}

}  // namespace

SampleBatches make_batches(std::span<const EvalSample> samples, int64_t batch_size) {
  check_arg(batch_size > 0, "eval: the batch size must be positive");
  std::vector<size_t> order(samples.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto kind = [&](size_t i) { return asks_likelihoods(samples[i]); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return kind(a) != kind(b) ? kind(b) : samples[a].context < samples[b].context;
  });
  SampleBatches batches;
  for (const size_t i : order) {
    const bool is_full = batches.empty() || std::ssize(batches.back()) == batch_size ||
                         kind(batches.back()[0]) != kind(i);
    if (is_full) batches.emplace_back();
    batches.back().push_back(i);
  }
  return batches;
}

void run_samples(Model& model, std::span<const EvalSample> samples, const SampleBatches& batches,
                 const SampleRunOptions& options, const SampleSink& done,
                 const Progress& progress) {
  check_samples(model, samples, options);
  const auto runner = make_runner(model, runner_options(samples, batches, options));
  ContextReader reader(*runner, options.ubatch);
  Answering answering(model, *runner, options.ubatch);
  std::vector<size_t> order;
  for (const auto& batch : batches) order.insert(order.end(), batch.begin(), batch.end());
  int64_t total = 0, num_done = 0;
  for (const size_t i : order) total += num_tokens(samples[i]);

  size_t at = 0;  // in order
  for (const auto& batch : batches) {
    std::vector<SampleResult> results(batch.size());
    std::vector<Answer> answers;
    for (size_t b = 0; b < batch.size(); ++b, ++at) {
      const EvalSample& sample = samples[batch[b]];
      const bool is_last = at + 1 == order.size();
      const SequenceId context = reader.read(
          sample.context, is_last ? std::span<const int32_t>() : samples[order[at + 1]].context);
      results[b].answers.resize(sample.questions.size());
      results[b].scores.resize(sample.questions.size());
      if (asks_likelihoods(sample)) {
        for (size_t q = 0; q < sample.questions.size(); ++q) {
          const auto likelihoods =
              score_choices(model, *runner, context, sample.questions[q], options.ubatch);
          keep_choice_scores(sample, q, likelihoods, results[b]);
        }
        results[b].compressed_tokens = runner->num_compressed_tokens(context);
      } else {
        for (size_t q = 0; q < sample.questions.size(); ++q) {
          answers.push_back({.sample = b,
                             .question = q,
                             .sequence = runner->fork(context),
                             .max_tokens = sample.max_new_tokens,
                             .stop = sample.stop});
        }
      }
      runner->drop(context);
      num_done += num_tokens(sample);
      report(progress, std::min(num_done, total - 1), total);  // the end is told below
    }
    answering.run(samples, batch, answers, results);
    for (size_t b = 0; b < batch.size(); ++b) done(batch[b], std::move(results[b]));
  }
  report(progress, total, total);
}

}  // namespace kvquant
