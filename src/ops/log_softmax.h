// Statistics of next-token distributions given as logits: log-likelihood, KL divergence, argmax.
// Sums are in double, over fixed spans, so results don't depend on threads.
#pragma once

#include <cstdint>
#include <span>

namespace kvquant {

// log(sum_i exp(logits[i])). -inf for an empty row.
double log_sum_exp(std::span<const float> logits);

// KL(p || q) = sum_i p_i (log p_i - log q_i) in nats, for p and q given as logits with their
// log_sum_exp. At least 0 up to rounding; clamped to 0.
double kl_divergence(std::span<const float> p_logits, double p_log_sum,
                     std::span<const float> q_logits, double q_log_sum);

// The index of the largest logit, the lowest one on ties. Requires a non-empty row.
int32_t argmax(std::span<const float> logits);

}  // namespace kvquant
