#include "eval/choice_scoring.h"

#include <algorithm>

#include "base/buffer.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

using SequenceId = Runner::SequenceId;

constexpr int64_t kLogitRows = 32;  // held at once

// A choice being read: the tokens that predict others, question first.
struct Reading {
  SequenceId sequence = 0;
  std::vector<int32_t> tokens;
  int64_t first_scored = 0;  // position of the token that predicts the choice's first
};

class ChoiceScorer {
 public:
  ChoiceScorer(Model& model, Runner& runner) : model_(model), runner_(runner) {}

  // Adds to `out`, one for one, what tokens [begin, begin + size) of the readings predict, each of
  // `size` its own.
  void read(const std::vector<Reading*>& readings, int64_t begin, int64_t ubatch,
            const std::vector<const EvalChoice*>& choices,
            const std::vector<ChoiceLikelihood*>& out) {
    std::vector<ForwardChunk> chunks;
    for (const Reading* reading : readings) {
      const auto rest = std::span(reading->tokens).subspan(static_cast<size_t>(begin));
      chunks.push_back(
          {reading->sequence, rest.first(std::min(rest.size(), static_cast<size_t>(ubatch)))});
    }
    runner_.forward(chunks);
    int64_t row = 0;
    for (size_t i = 0; i < readings.size(); ++i) {
      const auto size = std::ssize(chunks[i].tokens);
      const int64_t first = std::max(begin, readings[i]->first_scored);
      for (int64_t at = first; at < begin + size; at += kLogitRows) {
        const int64_t count = std::min(kLogitRows, begin + size - at);
        score({row + at - begin, count},
              std::span(choices[i]->tokens)
                  .subspan(static_cast<size_t>(at - readings[i]->first_scored)),
              *out[i]);
      }
      row += size;
    }
  }

 private:
  struct Rows {  // of the last forward
    int64_t first, count;
  };
  void score(Rows rows, std::span<const int32_t> next, ChoiceLikelihood& out) {
    const int64_t vocab = model_.config().vocab_size;
    logits_.reserve_discarding(kLogitRows * vocab);
    runner_.logits(rows.first, row_major(logits_.data(), {rows.count, vocab}));
    for (int64_t i = 0; i < rows.count; ++i) {
      const std::span logits(logits_.data() + i * vocab, static_cast<size_t>(vocab));
      const int32_t token = next[static_cast<size_t>(i)];
      out.log_likelihood += logits[static_cast<size_t>(token)] - log_sum_exp(logits);
      out.is_greedy = out.is_greedy && argmax(logits) == token;
    }
  }

  Model& model_;
  Runner& runner_;
  Buffer<float> logits_;  // [kLogitRows, vocab_size]
};

}  // namespace

std::vector<ChoiceLikelihood> score_choices(Model& model, Runner& runner, SequenceId context,
                                            const EvalQuestion& question, int64_t ubatch) {
  std::vector<ChoiceLikelihood> out(question.choices.size());
  std::vector<Reading> readings;
  int64_t total = 0;
  for (const EvalChoice& choice : question.choices) {
    Reading reading{runner.fork(context), question.tokens, std::ssize(question.tokens) - 1};
    reading.tokens.insert(reading.tokens.end(), choice.tokens.begin(), choice.tokens.end() - 1);
    total += std::ssize(reading.tokens);
    readings.push_back(std::move(reading));
  }
  ChoiceScorer scorer(model, runner);
  if (total <= ubatch) {
    std::vector<Reading*> all;
    std::vector<const EvalChoice*> choices;
    std::vector<ChoiceLikelihood*> scores;
    for (size_t i = 0; i < readings.size(); ++i) {
      all.push_back(&readings[i]);
      choices.push_back(&question.choices[i]);
      scores.push_back(&out[i]);
    }
    scorer.read(all, 0, ubatch, choices, scores);
  } else {
    for (size_t i = 0; i < readings.size(); ++i) {
      for (int64_t at = 0; at < std::ssize(readings[i].tokens); at += ubatch) {
        scorer.read({&readings[i]}, at, ubatch, {&question.choices[i]}, {&out[i]});
      }
    }
  }
  for (size_t i = 0; i < readings.size(); ++i) {
    out[i].compressed_tokens = runner.num_compressed_tokens(readings[i].sequence);
    runner.drop(readings[i].sequence);
  }
  return out;
}

void keep_choice_scores(const EvalSample& sample, size_t q,
                        const std::vector<ChoiceLikelihood>& likelihoods, SampleResult& result) {
  const auto& choices = sample.questions[q].choices;
  const auto right = static_cast<size_t>(sample.questions[q].right_choice);
  const auto extra = [&](const char* name) -> double& {
    auto& values = result.extra[name];
    values.resize(sample.questions.size());
    return values[q];
  };
  extra("nll") = -likelihoods[right].log_likelihood;
  if (sample.metric == EvalMetric::kLastWord) {
    result.scores[q] = likelihoods[right].is_greedy;
    return;
  }
  size_t best = 0, best_per_character = 0;  // the first one of equals
  const auto per_character = [&](size_t i) {
    const int64_t characters = std::max<int64_t>(1, choices[i].num_characters);
    return likelihoods[i].log_likelihood / static_cast<double>(characters);
  };
  for (size_t i = 1; i < choices.size(); ++i) {
    if (likelihoods[i].log_likelihood > likelihoods[best].log_likelihood) best = i;
    if (per_character(i) > per_character(best_per_character)) best_per_character = i;
  }
  result.answers[q] = std::to_string(best);
  result.scores[q] = best == right;
  extra("acc_norm") = best_per_character == right;
}

}  // namespace kvquant
