#include "bench/filled_cache.h"

#include <algorithm>

namespace kvquant {

FilledCache::FilledCache(Model& model, const CacheSpec& spec, int64_t ubatch, int64_t batch,
                         int64_t max_tokens)
    : model_(model),
      ubatch_(ubatch),
      runner_(make_runner(model, {.spec = spec,
                                  .mode = CacheMode::kAsServed,
                                  .num_sequences = batch,
                                  .max_tokens = max_tokens,
                                  .chunk_tokens = std::max(ubatch, batch),
                                  .num_forks = batch})),  // each in place of what is filled
      logits_(batch * model.config().vocab_size) {
  for (int64_t i = 0; i < batch; ++i) filled_.push_back(runner_->add_sequence());
}

void FilledCache::fill(std::span<const int32_t> tokens, const std::function<void()>& between) {
  runner_->fill(filled_, tokens, ubatch_, between);
  for (auto& id : filled_) {  // a fork has no buffer of the last chunk
    const auto fork = runner_->fork(id);
    runner_->drop(id);
    id = fork;
  }
}

void FilledCache::start() {
  finish();
  for (const auto id : filled_) running_.push_back(runner_->fork(id));
  runner_->reset_peak();
}

int64_t FilledCache::peak_cache_bytes() const {
  // What was filled and no fork shares: blocks and windows that they copied before they wrote.
  const int64_t foreign = runner_->memory_bytes() - runner_->memory_bytes(running_);
  return runner_->peak_bytes() - foreign;
}

void FilledCache::finish() {
  for (const auto id : running_) runner_->drop(id);
  running_.clear();
}

void FilledCache::prefill(std::span<const int32_t> tokens) {
  const size_t count = tokens.size(), total = count * running_.size();
  for (size_t at = 0; at < total;) {  // token at % count of sequence at / count
    const size_t begin = at, end = std::min(begin + static_cast<size_t>(ubatch_), total);
    std::vector<ForwardChunk> chunks;
    while (at < end) {
      const size_t first = at % count, size = std::min(end - at, count - first);
      chunks.push_back({running_[at / count], tokens.subspan(first, size)});
      at += size;
    }
    runner_->forward(chunks);
    for (size_t i = begin / count; i < at / count; ++i) {  // whose last token was there
      const auto row = static_cast<int64_t>((i + 1) * count - 1 - begin);
      keep_logits(row, static_cast<int64_t>(i), 1);
    }
  }
}

void FilledCache::decode(std::span<const int32_t> tokens) {
  std::vector<ForwardChunk> chunks(running_.size());
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t i = 0; i < running_.size(); ++i) chunks[i] = {running_[i], tokens.subspan(t, 1)};
    runner_->forward(chunks);
    keep_logits(0, 0, static_cast<int64_t>(running_.size()));
  }
}

void FilledCache::keep_logits(int64_t row, int64_t sequence, int64_t count) {
  const int64_t vocab = model_.config().vocab_size;
  runner_->logits(row, row_major(logits_.data() + sequence * vocab, {count, vocab}));
}

}  // namespace kvquant
