// How far attention that reads codes (fused: decoding, rotation and softmax in one pass over tiles)
// is from the plain path, the loops of attend_ref.cc with sums in double, in next-token
// distributions. Two sequences of the same text go through the layers side by side: the first is
// attended by the fused path, the second by the plain one, and both read what the first stored. If
// each stored its own, a difference in the last bit would now and then become another code.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "model/model.h"
#include "ops/log_softmax.h"

namespace kvquant::test {

struct PathDifference {
  double mean_kl = 0;             // of KL(plain || fused) over the tokens, nats
  int64_t compressed_tokens = 0;  // that the last token read
  bool reads_codes = true;        // in all layers
};

struct PathOptions {
  Backend fused = best_backend();
  float plain_scale = 1;  // of the plain path's scores: not 1 is a fault
};

inline double mean_kl(TensorView<const float, 2> p, TensorView<const float, 2> q) {
  double sum = 0;
  for (int64_t i = 0; i < p.shape[0]; ++i) {
    const std::span a(&p(i, 0), static_cast<size_t>(p.shape[1]));
    const std::span b(&q(i, 0), static_cast<size_t>(q.shape[1]));
    sum += kl_divergence(a, log_sum_exp(a), b, log_sum_exp(b));
  }
  return sum / static_cast<double>(p.shape[0]);
}

// The text goes to a strict cache in chunks, its last tokens one by one.
inline PathDifference compare_paths(Model& model, std::span<const int32_t> text,
                                    const CacheSpec& spec, const PathOptions& options = {}) {
  constexpr int64_t kChunk = 80, kNumSteps = 8;
  Transformer& transformer = model.transformer();
  KvCache cache(transformer.kv_shape(), spec, CacheMode::kStrict, transformer.rope_table(),
                model.pool(), model.calibration());
  const auto fused = cache.add_sequence(), plain = cache.add_sequence();
  transformer.set_attention([&](int64_t layer, KvCache::SequenceId sequence,
                                const AttendShape& shape, std::span<const AttendJob> jobs) {
    if (sequence == fused) {
      return attend(shape, jobs, transformer.precision(), model.pool(), options.fused);
    }
    cache.prepare_view(layer, fused);
    std::vector<AttendJob> same_view(jobs.begin(), jobs.end());
    for (size_t head = 0; head < jobs.size(); ++head) {
      same_view[head].runs = cache.view(layer, fused, static_cast<int64_t>(head));
    }
    AttendShape scaled = shape;
    scaled.scale *= options.plain_scale;
    attend(scaled, same_view, Precision::kF32, model.pool(), Backend::kReference);
  });
  const auto length = static_cast<int64_t>(text.size());
  const int64_t vocab = model.config().vocab_size;
  std::vector<float> logits(static_cast<size_t>(2 * kChunk * vocab));
  PathDifference out;
  for (int64_t begin = 0, size = 0; begin < length; begin += size) {
    const int64_t left = length - kNumSteps - begin;
    size = left > 0 ? std::min(kChunk, left) : 1;
    const auto tokens = text.subspan(static_cast<size_t>(begin), static_cast<size_t>(size));
    const ForwardChunk chunks[] = {{fused, tokens}, {plain, tokens}};
    transformer.logits(transformer.forward(chunks, cache),
                       row_major(logits.data(), {2 * size, vocab}));
    const float* plain_logits = logits.data() + size * vocab;
    const double kl = mean_kl(row_major<const float, 2>(plain_logits, {size, vocab}),
                              row_major<const float, 2>(logits.data(), {size, vocab}));
    out.mean_kl += kl * static_cast<double>(size) / static_cast<double>(length);
  }
  transformer.set_attention({});
  out.compressed_tokens = cache.num_compressed_tokens(fused);
  for (int64_t layer = 0; layer < model.config().num_layers; ++layer) {
    out.reads_codes = out.reads_codes && cache.reads_codes(layer);
  }
  return out;
}

}  // namespace kvquant::test
