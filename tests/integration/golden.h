// Helpers of the tests that compare with transformers (tests/golden, made by make_golden.py).
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/session.h"
#include "ops/log_softmax.h"

namespace kvquant::test {

inline nlohmann::json read_golden(const std::string& name) {
  return nlohmann::json::parse(read_text(KVQUANT_SOURCE_DIR "/tests/golden/" + name));
}

// All logits of tokens fed at once, [ids][vocab_size].
inline std::vector<float> all_logits(Transformer& transformer, const std::vector<int32_t>& ids,
                                     const char* spec = "fp32") {
  KvCache cache(transformer.kv_shape(), parse_spec(spec), CacheMode::kAsServed,
                transformer.rope_table(), transformer.pool());
  const ForwardChunk chunk{cache.add_sequence(), ids};
  const auto hidden = transformer.forward({&chunk, 1}, cache);
  const int64_t num_rows = hidden.shape[0], vocab = transformer.config().vocab_size;
  std::vector<float> out(static_cast<size_t>(num_rows * vocab));
  transformer.logits(hidden, row_major(out.data(), {num_rows, vocab}));
  return out;
}
inline std::vector<float> all_logits(Model& model, const std::vector<int32_t>& ids) {
  return all_logits(model.transformer(), ids);
}

// Feeds `prompt`, then the golden's own tokens, and returns how many of them were also this
// model's greedy choice before the first real disagreement: one where the golden's margin over its
// runner-up (in logits) is at least `tolerance`.
inline size_t greedy_agreement(Model& model, const std::vector<int32_t>& prompt,
                               const std::vector<int32_t>& expected,
                               const std::vector<double>& margins, double tolerance) {
  Session session(model, {.spec = parse_spec("fp16")});
  auto logits = session.feed(prompt);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (argmax(logits) != expected[i] && margins[i] >= tolerance) return i;
    if (i + 1 < expected.size()) logits = session.feed({&expected[i], 1});
  }
  return expected.size();
}

}  // namespace kvquant::test
