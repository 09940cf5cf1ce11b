// Highway code, compiled once per instruction set; the best is chosen at run time.
#include "ops/log_softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/log_softmax.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

// After foreach_target, which includes this file once per instruction set.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

constexpr int64_t kSpan = 1024;  // floats summed in f32 before a double takes the partial sum

// sum_i exp(x_i - shift) * weight(i), weight 1 or a function of the lanes.
template <class Term>
double sum_spans(int64_t size, const Term& term) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += kSpan) {
    const int64_t end = std::min(begin + kSpan, size);
    auto sum = hn::Zero(d);
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) sum = hn::Add(sum, term(d, i, lanes));
    if (i < end) sum = hn::Add(sum, term(d, i, end - i));
    total += hn::GetLane(hn::SumOfLanes(d, sum));
  }
  return total;
}

template <class D>
hn::Vec<D> load(D d, const float* x, int64_t count) {
  if (count == static_cast<int64_t>(hn::Lanes(d))) return hn::LoadU(d, x);
  return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(count)), d, x);
}

double SumExp(const float* x, int64_t size, float shift) {
  return sum_spans(size, [&](auto d, int64_t i, int64_t count) {
    const auto e = hn::Exp(d, hn::Sub(load(d, x + i, count), hn::Set(d, shift)));
    return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count)), e);
  });
}

// sum_i exp(p_i - p_sum) * ((p_i - p_sum) - (q_i - q_sum))
double KlSum(const float* p, const float* q, int64_t size, float p_sum, float q_sum) {
  return sum_spans(size, [&](auto d, int64_t i, int64_t count) {
    const auto log_p = hn::Sub(load(d, p + i, count), hn::Set(d, p_sum));
    const auto log_q = hn::Sub(load(d, q + i, count), hn::Set(d, q_sum));
    const auto term = hn::Mul(hn::Exp(d, log_p), hn::Sub(log_p, log_q));
    return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count)), term);
  });
}

}  // namespace
}  // namespace kvquant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(SumExp);
HWY_EXPORT(KlSum);

double log_sum_exp(std::span<const float> logits) {
  if (logits.empty()) return -std::numeric_limits<double>::infinity();
  const float max = logits[static_cast<size_t>(argmax(logits))];
  if (!std::isfinite(max)) return max;
  return max + std::log(HWY_DYNAMIC_DISPATCH(SumExp)(logits.data(),
                                                     static_cast<int64_t>(logits.size()), max));
}

double kl_divergence(std::span<const float> p_logits, double p_log_sum,
                     std::span<const float> q_logits, double q_log_sum) {
  const double kl = HWY_DYNAMIC_DISPATCH(KlSum)(
      p_logits.data(), q_logits.data(), static_cast<int64_t>(p_logits.size()),
      static_cast<float>(p_log_sum), static_cast<float>(q_log_sum));
  // The f32 rounding of the two sums shifts every term alike: sum_i p_i = 1 turns it into one
  // constant, taken out again here.
  const double shift =
      (p_log_sum - static_cast<float>(p_log_sum)) - (q_log_sum - static_cast<float>(q_log_sum));
  return std::max(0.0, kl - shift);
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace kvquant
#endif
