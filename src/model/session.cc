#include "model/session.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/timer.h"
#include "cache/cache_file.h"
#include "kvquant/error.h"
#include "ops/log_softmax.h"

namespace kvquant {
namespace {

constexpr int64_t kScoreRows = 32;  // rows of logits that score() holds at once

int64_t resolve_context(const Model& model, int64_t context) {
  const int64_t most = model.config().max_context;
  check_arg(0 <= context && context <= most, "context " + std::to_string(context) +
                                                 " is not in [1, " + std::to_string(most) +
                                                 "], the model's");
  return context == 0 ? most : context;
}

void check_vocabulary(const Model& model, std::span<const int32_t> tokens) {
  const int64_t size = model.config().vocab_size;
  for (const int32_t token : tokens) {
    check_arg(
        0 <= token && token < size,
        "token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(size));
  }
}

}  // namespace

Session::Session(Model& model, const SessionOptions& options)
    : model_(model),
      context_(resolve_context(model, options.context)),
      ubatch_(options.ubatch),
      runner_(make_runner(model, {.spec = options.spec,
                                  .mode = options.mode,
                                  .max_tokens = context_,
                                  .chunk_tokens = options.ubatch})),
      sequence_(runner_->add_sequence()),
      logits_(model.config().vocab_size) {
  check_arg(ubatch_ > 0, "ubatch " + std::to_string(ubatch_) + " is not positive");
}

void Session::run(std::span<const int32_t> tokens, const Progress& progress,
                  const std::function<void(int64_t begin, int64_t size)>& use) {
  const auto count = static_cast<int64_t>(tokens.size());
  check_arg(!is_broken_, "the session ended with an error amid a chunk: start a new one");
  check_arg(count > 0, "the prompt is empty: there is nothing to continue");
  check_arg(length() + count <= context_, "the prompt needs " + std::to_string(length() + count) +
                                              " tokens, the context has " +
                                              std::to_string(context_));
  check_vocabulary(model_, tokens);
  for (int64_t begin = 0; begin < count; begin += ubatch_) {
    const int64_t size = std::min(ubatch_, count - begin);
    const ForwardChunk chunk{sequence_,
                             tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
    is_broken_ = true;  // until the chunk is through all layers
    runner_->forward({&chunk, 1});
    tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
    use(begin, size);
    is_broken_ = false;
    report(progress, begin + size, count);
  }
}

void Session::advance(std::span<const int32_t> tokens, const Progress& progress) {
  run(tokens, progress, [&](int64_t, int64_t size) { last_row_ = size - 1; });
}

std::span<const float> Session::feed(std::span<const int32_t> tokens, const Progress& progress) {
  advance(tokens, progress);
  runner_->logits(last_row_, row_major(logits_.data(), {1, logits_.size()}));
  return logits_.span();
}

int32_t Session::sample(Sampler& sampler) {
  check_arg(last_row_ >= 0, "there is nothing yet to draw a token behind");
  // Models may have more logits than their tokenizer has tokens: nothing stands for the others.
  return runner_->sample(last_row_, model_.tokenizer().vocab_size(), sampler, tokens_);
}

std::vector<double> Session::score(std::span<const int32_t> tokens, const Progress& progress) {
  const int64_t vocab = logits_.size(), num_scored = std::ssize(tokens) - 1;
  std::vector<double> scores(static_cast<size_t>(std::max<int64_t>(0, num_scored)));
  Buffer<float> logits(kScoreRows * vocab);
  run(tokens, progress, [&](int64_t begin, int64_t size) {
    const int64_t end = std::min(size, num_scored - begin);  // rows that predict one
    for (int64_t first = 0; first < end; first += kScoreRows) {
      const int64_t rows = std::min(kScoreRows, end - first);
      runner_->logits(first, row_major(logits.data(), {rows, vocab}));
      model_.pool().parallel_for(rows, [&](int64_t i, int) {
        const std::span row(logits.data() + i * vocab, static_cast<size_t>(vocab));
        const auto at = static_cast<size_t>(begin + first + i);
        scores[at] = row[static_cast<size_t>(tokens[at + 1])] - log_sum_exp(row);
      });
    }
  });
  return scores;
}

void Session::truncate(int64_t length) {
  check_arg(!is_broken_, "the session ended with an error amid a chunk: start a new one");
  runner_->truncate(sequence_, length);
  tokens_.resize(static_cast<size_t>(length));
}

void Session::restart() {
  runner_->drop(sequence_);
  sequence_ = runner_->add_sequence();
  tokens_.clear();
  is_broken_ = false;
}

KvCache& Session::cpu_cache() const {
  KvCache* cache = runner_->kv_cache();
  check_arg(cache != nullptr, "caches on GPUs have no files and can't be looked into");
  return *cache;
}

const KvCache& Session::cache() const { return cpu_cache(); }

bool Session::can_move_tiles() const {
  const KvCache* cache = runner_->kv_cache();
  if (cache == nullptr) return false;
  for (int64_t layer = 0; layer < cache->shape().num_layers; ++layer) {
    if (!cache->can_splice(layer)) return false;
  }
  return cache->mode() == CacheMode::kAsServed || cache->spec().recent.value_or(0) == 0;
}

Session::Shift Session::shift(int64_t keep, int64_t num_tokens) {
  check_arg(!is_broken_, "the session ended with an error amid a chunk: start a new one");
  check_arg(0 <= keep && 0 < num_tokens && keep + num_tokens < length(),
            "shift: " + std::to_string(num_tokens) + " tokens behind " + std::to_string(keep) +
                " are not within " + std::to_string(length()));
  const std::vector<int32_t> before = std::move(tokens_);
  const KvCache::SequenceId source = sequence_;
  const auto tiles_up_to = [](int64_t count) { return (count + kTileTokens - 1) / kTileTokens; };
  int64_t sink = 0, first_gone = keep, first_moved = keep + num_tokens, end_moved = first_moved;
  bool moves = can_move_tiles();
  if (moves) {
    sink = cpu_cache().spec().sink.value_or(0);
    const int64_t num_tiles = cpu_cache().store(source).num_encoded / kTileTokens;
    const int64_t num_kept = std::min(num_tiles, tiles_up_to(std::max<int64_t>(0, keep - sink)));
    const int64_t num_gone = std::min(num_tiles - num_kept, tiles_up_to(num_tokens));
    moves = num_gone > 0;
    if (moves) {
      first_gone = sink + num_kept * kTileTokens;
      first_moved = first_gone + num_gone * kTileTokens;
      end_moved = sink + num_tiles * kTileTokens;
    }
  }
  const std::span<const int32_t> all = before;
  const auto part = [&](int64_t begin, int64_t end) {
    return all.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  };
  tokens_.clear();
  sequence_ = runner_->add_sequence();
  if (!moves) {
    runner_->drop(source);
    if (first_gone > 0) feed(part(0, first_gone));
    feed(part(first_moved, std::ssize(before)));
    return {num_tokens, length(), false};
  }
  const auto move = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    cpu_cache().splice(sequence_, source, begin, end - begin);
    tokens_.insert(tokens_.end(), before.begin() + begin, before.begin() + end);
  };
  if (sink > 0) feed(part(0, sink));
  move(sink, first_gone);
  move(first_moved, end_moved);
  runner_->drop(source);
  if (end_moved < std::ssize(before)) feed(part(end_moved, std::ssize(before)));
  return {first_moved - first_gone, sink + std::ssize(before) - end_moved, true};
}

void Session::save(const std::string& path, const std::string& kvquant_version) {
  check_arg(!is_broken_, "the session ended with an error amid a chunk: start a new one");
  save_cache(
      cpu_cache(), sequence_, tokens_,
      {.kvquant_version = kvquant_version, .model_fingerprint = model_.checkpoint().fingerprint()},
      path);
}

void Session::load(const std::string& path, std::optional<int64_t> num_expected) {
  LoadedSequence loaded = load_cache(cpu_cache(), model_.checkpoint().fingerprint(), path);
  try {
    check_vocabulary(model_, loaded.tokens);
    const auto count = static_cast<int64_t>(loaded.tokens.size());
    check_arg(count <= context_, "it has " + std::to_string(count) + " tokens, the context has " +
                                     std::to_string(context_));
    check_arg(!num_expected || count == *num_expected,
              "it has " + std::to_string(count) + " tokens, not " +
                  std::to_string(num_expected.value_or(0)));
  } catch (const std::invalid_argument& error) {
    runner_->drop(loaded.id);
    throw FormatError(path + ": " + error.what());
  }
  runner_->drop(sequence_);
  sequence_ = loaded.id;
  tokens_ = std::move(loaded.tokens);
  is_broken_ = false;
}

Generation generate(Session& session, std::span<const int32_t> prompt,
                    const GenerateOptions& options, const std::function<bool(int32_t)>& on_token,
                    const Progress& prompt_progress) {
  check_arg(options.max_tokens >= 0, "the number of tokens to generate is negative");
  Sampler sampler(options.sampler);
  Generation out;
  out.num_prompt_tokens = static_cast<int64_t>(prompt.size());
  const Timer prompt_timer;
  session.advance(prompt, prompt_progress);
  out.prompt_s = prompt_timer.seconds();

  const Timer timer;
  const auto& stop = options.stop_tokens;
  while (static_cast<int64_t>(out.tokens.size()) < options.max_tokens) {
    const int32_t token = session.sample(sampler);
    if (std::find(stop.begin(), stop.end(), token) != stop.end()) {
      out.stop = StopReason::kStopToken;
      break;
    }
    out.tokens.push_back(token);
    if (on_token && !on_token(token)) {
      out.stop = StopReason::kCaller;
      break;
    }
    if (static_cast<int64_t>(out.tokens.size()) == options.max_tokens) break;
    if (session.length() == session.context()) {
      out.stop = StopReason::kContextFull;
      break;
    }
    session.advance({&token, 1});
  }
  out.generation_s = timer.seconds();
  return out;
}

}  // namespace kvquant
