// Products with panels of 8-bit codes by 8-bit integer dot products (VNNI): inputs are two signed
// bytes each, four of them are multiplied with four unsigned codes and added up by one instruction,
// and the sum of what shares a scale is an exact integer. Nothing is widened, so that reading the
// codes is what takes time.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics' undefined vectors (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "ops/code_quads_avx512bf16_inl.h"
#include "ops/linear_panel.h"

namespace kvquant::avx512bf16 {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 4;       // to a panel's outputs
constexpr int64_t kGroup = 32;    // kWeightGroup: inputs of an InputGroup
constexpr int64_t kOutputs = 64;  // kPanelOutputs
constexpr float kSteps = 16256;   // 127 * 128: the largest magnitude of a rounded input

// Sums over a group's inputs of codes times high and low bytes.
template <int kRows, int kWidth>
struct GroupSums {
  __m512i high[kRows][kWidth], low[kRows][kWidth];
};

__m512i broadcast_quad(const int8_t* bytes) {
  int32_t quad;
  __builtin_memcpy(&quad, bytes, sizeof quad);
  return _mm512_set1_epi32(quad);
}

template <int kRows, int kWidth, WeightType kType>
GroupSums<kRows, kWidth> sum_group(const GroupOf<kType>& w, const PanelInput<InputGroup>& x,
                                   int column, int part) {
  GroupSums<kRows, kWidth> sums;
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kWidth; ++i) {
      sums.high[row][i] = _mm512_setzero_si512();
      sums.low[row][i] = _mm512_setzero_si512();
    }
  }
  constexpr int kInputs = group_inputs(kType);
  const int first = part * kInputs;
  unroll<kInputs / 4>([&](auto quad) {
    __m512i codes[kWidth];
    for (int i = 0; i < kWidth; ++i) codes[i] = load_quad<quad>(w, column + i * kLanes);
    for (int row = 0; row < kRows; ++row) {
      const __m512i high = broadcast_quad(x.data[row * x.stride].high + first + 4 * quad);
      const __m512i low = broadcast_quad(x.data[row * x.stride].low + first + 4 * quad);
      for (int i = 0; i < kWidth; ++i) {
        sums.high[row][i] = _mm512_dpbusd_epi32(sums.high[row][i], codes[i], high);
        sums.low[row][i] = _mm512_dpbusd_epi32(sums.low[row][i], codes[i], low);
      }
    }
  });
  return sums;
}

__m512 load_halves(const Half* halves) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)));
}

// Adds the products of a group, the inputs of which are part `part` of x's, with kRows rows of x,
// kWidth vectors of outputs from `column` on.
template <int kRows, int kWidth, WeightType kType>
void add_group(const GroupOf<kType>& w, const PanelInput<InputGroup>& x, int column, int part,
               __m512 (&sum)[kRows][kWidth]) {
  const auto dots = sum_group<kRows, kWidth, kType>(w, x, column, part);
  for (int i = 0; i < kWidth; ++i) {
    const __m512 scale = load_halves(w.scales + column + i * kLanes);
    const __m512 offset = load_halves(w.offsets + column + i * kLanes);
    for (int row = 0; row < kRows; ++row) {
      const InputGroup& input = x.data[row * x.stride];
      const float input_sum = group_inputs(kType) == kGroup ? input.sum : input.part_sums[part];
      const __m512i high = _mm512_slli_epi32(dots.high[row][i], 7);
      const __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(high, dots.low[row][i]));
      const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(input.scale));
      sum[row][i] = _mm512_fmadd_ps(offset, _mm512_set1_ps(input_sum),
                                    _mm512_fmadd_ps(step, dot, sum[row][i]));
    }
  }
}

template <int kRows, int kWidth, WeightType kType>
void block_product(const PanelView& w, const PanelInput<InputGroup>& x, int column, float* y) {
  constexpr int64_t kParts = kGroup / group_inputs(kType);
  const auto* groups = reinterpret_cast<const GroupOf<kType>*>(w.data);
  __m512 sum[kRows][kWidth];
  for (auto& row : sum) {
    for (__m512& v : row) v = _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < w.padded_in / group_inputs(kType); ++g) {
    const PanelInput<InputGroup> inputs = {x.data + g / kParts, x.stride, x.num_rows};
    add_group<kRows, kWidth, kType>(groups[g], inputs, column, static_cast<int>(g % kParts), sum);
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kWidth; ++i) {
      _mm512_storeu_ps(y + row * kOutputs + column + i * kLanes, sum[row][i]);
    }
  }
}

// As many vectors of outputs as leave the sums in registers.
template <int kRows, WeightType kType>
void rows_product(const PanelView& w, const PanelInput<InputGroup>& x, float* y) {
  constexpr int kWidth = kRows <= 2 ? kVectors : kVectors / 2;
  for (int i = 0; i < kVectors; i += kWidth) {
    block_product<kRows, kWidth, kType>(w, x, i * kLanes, y);
  }
}

template <WeightType kType>
void typed_product(const PanelView& w, PanelInput<InputGroup> x, float* y) {
  while (x.num_rows > 0) {
    const int64_t num_rows = x.num_rows < 4 ? x.num_rows : 4;
    switch (num_rows) {
      case 1: rows_product<1, kType>(w, x, y); break;
      case 2: rows_product<2, kType>(w, x, y); break;
      case 3: rows_product<3, kType>(w, x, y); break;
      default: rows_product<4, kType>(w, x, y); break;
    }
    x.num_rows -= num_rows;
    x.data += num_rows * x.stride;
    y += num_rows * kOutputs;
  }
}

void quantize_group(const float* x, InputGroup& out) {
  const __m512 values[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + kLanes)};
  // Magnitudes compare as integers do, infinity and NaN above all others.
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  const int32_t largest_bits = _mm512_reduce_max_epi32(
      _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(values[0]), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(values[1]), magnitude)));
  float largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof largest);
  const bool is_finite = largest_bits < 0x7F800000;
  const bool is_zero = !is_finite || largest < 0x1p-100f;
  const __m512 steps = _mm512_set1_ps(is_zero ? 0.0f : kSteps / largest);
  out.scale = is_zero ? 0.0f : largest / kSteps;
  if (!is_finite) out.scale = __builtin_nanf("");

  int sums[2];
  for (int i = 0; i < 2; ++i) {
    // A NaN times zero becomes the integer INT_MIN; what bytes it has does not matter then.
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], steps));
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(rounded, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(rounded, _mm512_slli_epi32(high, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high + i * kLanes), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low + i * kLanes), _mm512_cvtepi32_epi8(low));
    sums[i] = _mm512_reduce_add_epi32(rounded);
    out.part_sums[i] = out.scale * static_cast<float>(sums[i]);
  }
  // Added as unsigned, which may wrap: rounded NaNs are large.
  const auto all =
      static_cast<int>(static_cast<unsigned>(sums[0]) + static_cast<unsigned>(sums[1]));
  out.sum = out.scale * static_cast<float>(all);
}

}  // namespace

void panel_product(const PanelView& w, const PanelInput<InputGroup>& x, float* y) noexcept {
  switch (w.type) {
    case WeightType::kInt8x2: return typed_product<WeightType::kInt8x2>(w, x, y);
    case WeightType::kInt6x2: return typed_product<WeightType::kInt6x2>(w, x, y);
    case WeightType::kInt5: return typed_product<WeightType::kInt5>(w, x, y);
    case WeightType::kInt4: return typed_product<WeightType::kInt4>(w, x, y);
    default: return typed_product<WeightType::kInt8>(w, x, y);
  }
}

void quantize_input(const float* x, int64_t size, InputGroup* out) noexcept {
  for (int64_t g = 0; g < size / kGroup; ++g) quantize_group(x + g * kGroup, out[g]);
}

}  // namespace kvquant::avx512bf16
