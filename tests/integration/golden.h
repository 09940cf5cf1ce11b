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
