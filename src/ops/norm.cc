#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/norm.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "base/check.h"
#include "ops/norm.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The sum of squares runs over four accumulators, enough to hide the latency of an addition.
float sum_of_squares(const float* HWY_RESTRICT x, int64_t width) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= width; i += 4 * lanes) {
    const auto x0 = hn::LoadU(d, x + i), x1 = hn::LoadU(d, x + i + lanes);
    const auto x2 = hn::LoadU(d, x + i + 2 * lanes), x3 = hn::LoadU(d, x + i + 3 * lanes);
    a = hn::MulAdd(x0, x0, a);
    b = hn::MulAdd(x1, x1, b);
    c = hn::MulAdd(x2, x2, c);
    e = hn::MulAdd(x3, x3, e);
  }
  for (; i + lanes <= width; i += lanes) {
    const auto x0 = hn::LoadU(d, x + i);
    a = hn::MulAdd(x0, x0, a);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
  for (; i < width; ++i) sum += x[i] * x[i];
  return sum;
}

void norm_row(const float* x, const float* weight, float eps, int64_t width, float* out) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float factor = 1.0f / std::sqrt(sum_of_squares(x, width) / static_cast<float>(width) + eps);
  const auto factors = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    const auto scaled = hn::Mul(hn::LoadU(d, x + i), factors);
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant {

HWY_EXPORT(norm_row);

void rms_norm(TensorView<const float, 2> x, std::span<const float> weight, float eps,
              TensorView<float, 2> out) {
  const int64_t width = x.shape[1];
  if (static_cast<int64_t>(weight.size()) != width || out.shape[0] != x.shape[0] ||
      out.shape[1] != width) {
    throw std::invalid_argument(fmt::format(
        "rms_norm: x [{}, {}], weight [{}] and out [{}, {}] must have one width and number of rows",
        x.shape[0], width, weight.size(), out.shape[0], out.shape[1]));
  }
  check_arg(x.stride[1] == 1 && out.stride[1] == 1,
            "rms_norm: the innermost strides of x and out must be 1");
  if (width == 0) return;
  for (int64_t row = 0; row < x.shape[0]; ++row) {
    HWY_DYNAMIC_DISPATCH(norm_row)
    (x.data + row * x.stride[0], weight.data(), eps, width, out.data + row * out.stride[0]);
  }
}

}  // namespace kvquant
#endif  // HWY_ONCE
