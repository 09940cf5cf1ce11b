// The reference of linear(): one output at a time, sums in double.
#include <cmath>
#include <cstring>

#include "ops/linear_panel.h"

namespace kvquant::ref {
namespace {

template <class T>
T load(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <WeightType kType>
double grouped_weight(const PanelView& w, int64_t in, int64_t out) {
  constexpr int64_t kInputs = group_inputs(kType);
  const auto group = load<GroupOf<kType>>(w.data, in / kInputs);
  return double{to_float(group.scales[out])} * group.code(in % kInputs, out) +
         to_float(group.offsets[out]);
}

double weight(const PanelView& w, int64_t in, int64_t out) {
  const int64_t at = in * kPanelOutputs + out;
  switch (w.type) {
    case WeightType::kF32: return load<float>(w.data, at);
    case WeightType::kBF16:
      return to_float(load<BFloat16>(w.data, (in / 2 * kPanelOutputs + out) * 2 + in % 2));
    case WeightType::kInt8: return grouped_weight<WeightType::kInt8>(w, in, out);
    case WeightType::kInt8x2: return grouped_weight<WeightType::kInt8x2>(w, in, out);
    case WeightType::kInt6x2: return grouped_weight<WeightType::kInt6x2>(w, in, out);
    case WeightType::kInt5: return grouped_weight<WeightType::kInt5>(w, in, out);
    case WeightType::kInt4: return grouped_weight<WeightType::kInt4>(w, in, out);
  }
  return 0;
}

}  // namespace

void panel_product(const PanelView& w, const PanelInput<float>& x, float* y) noexcept {
  for (int64_t row = 0; row < x.num_rows; ++row) {
    for (int64_t out = 0; out < kPanelOutputs; ++out) {
      double sum = 0;
      for (int64_t in = 0; in < w.padded_in; ++in) {
        sum += weight(w, in, out) * x.data[row * x.stride + in];
      }
      y[row * kPanelOutputs + out] = static_cast<float>(sum);
    }
  }
}

void store_panel(const float* y, const PanelOutput& out, Epilogue epilogue) noexcept {
  for (int64_t row = 0; row < out.num_rows; ++row) {
    for (int64_t i = 0; i < out.num_columns; ++i) {
      float& target = out.data[row * out.stride + i];
      const float product = y[row * kPanelOutputs + i];
      target = epilogue == Epilogue::kAdd ? target + product : product;
    }
  }
}

void store_swiglu(const float* gate, const float* up, const PanelOutput& out) noexcept {
  for (int64_t row = 0; row < out.num_rows; ++row) {
    for (int64_t i = 0; i < out.num_columns; ++i) {
      const double g = gate[row * kPanelOutputs + i];
      out.data[row * out.stride + i] =
          static_cast<float>(g / (1 + std::exp(-g)) * up[row * kPanelOutputs + i]);
    }
  }
}

}  // namespace kvquant::ref
