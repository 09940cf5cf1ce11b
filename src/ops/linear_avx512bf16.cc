// Panel kernels with the bf16 dot product of AVX-512: a lane is an output, its two halves are
// neighbouring inputs, as the kBF16 panel stores them. And panels of 8-bit codes expanded to that.
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
constexpr int64_t kOutputs = 64;  // kPanelOutputs

// Which bytes of 16 outputs' quads are the codes of inputs `first` and first + 1 of outputs
// [output, output + 8), as the low bytes of lanes; the other bytes must be masked to zero.
__m512i pair_bytes(int first, int output) {
  alignas(64) uint8_t bytes[64] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    bytes[4 * lane] = static_cast<uint8_t>(4 * (output + lane / 2) + first + lane % 2);
  }
  return _mm512_load_si512(bytes);
}

// Eight outputs of a panel of 8-bit codes, a lane for each of two neighbouring inputs.
class PairDecoder {
 public:
  // scales and offsets: of those outputs.
  PairDecoder(const Half* scales, const Half* offsets)
      : scale_(twice(scales)), offset_(twice(offsets)) {}

  __m512 decode(__m512i quads, __m512i bytes) const {
    constexpr __mmask64 kLowBytes = 0x1111111111111111;
    const __m512i codes = _mm512_maskz_permutexvar_epi8(kLowBytes, bytes, quads);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), scale_, offset_);
  }

 private:
  static __m512 twice(const Half* halves) {
    const __m128i eight = _mm_load_si128(reinterpret_cast<const __m128i*>(halves));
    return _mm512_cvtph_ps(
        _mm256_set_m128i(_mm_unpackhi_epi16(eight, eight), _mm_unpacklo_epi16(eight, eight)));
  }

  __m512 scale_, offset_;
};

template <int kRows>
void add_pair(const __m512i (&w)[kVectors], const PanelInput<BFloat16>& x, int64_t in,
              __m512 (&sum)[kRows][kVectors]) {
  for (int row = 0; row < kRows; ++row) {
    int32_t inputs;
    __builtin_memcpy(&inputs, x.data + row * x.stride + in, sizeof inputs);
    const auto both = (__m512bh)_mm512_set1_epi32(inputs);
    for (int i = 0; i < kVectors; ++i) {
      sum[row][i] = _mm512_dpbf16_ps(sum[row][i], (__m512bh)w[i], both);
    }
  }
}

template <int kRows>
void product_bf16(const PanelView& w, const PanelInput<BFloat16>& x,
                  __m512 (&sum)[kRows][kVectors]) {
  const auto* weights = reinterpret_cast<const uint32_t*>(w.data);
  for (int64_t in = 0; in < w.padded_in; in += 2, weights += kOutputs) {
    __m512i pair[kVectors];
    for (int i = 0; i < kVectors; ++i) pair[i] = _mm512_load_si512(weights + i * kLanes);
    add_pair(pair, x, in, sum);
  }
}

template <int kRows>
void rows_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) {
  __m512 sum[kRows][kVectors];
  for (auto& row : sum) {
    for (__m512& v : row) v = _mm512_setzero_ps();
  }
  product_bf16(w, x, sum);
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVectors; ++i) {
      _mm512_storeu_ps(y + row * kOutputs + i * kLanes, sum[row][i]);
    }
  }
}

template <WeightType kType>
void unpack_groups(const PanelView& w, BFloat16* out) {
  constexpr int64_t kInputs = group_inputs(kType);
  const __m512i bytes[2][2] = {{pair_bytes(0, 0), pair_bytes(0, 8)},
                               {pair_bytes(2, 0), pair_bytes(2, 8)}};
  const auto* groups = reinterpret_cast<const GroupOf<kType>*>(w.data);
  for (int64_t g = 0; g < w.padded_in / kInputs; ++g, out += kInputs * kOutputs) {
    for (int column = 0; column < kOutputs; column += kLanes) {
      const Half* scales = groups[g].scales + column;
      const Half* offsets = groups[g].offsets + column;
      const PairDecoder low(scales, offsets), high(scales + 8, offsets + 8);
      unroll<kInputs / 4>([&](auto quad) {
        const __m512i quads = load_quad<quad>(groups[g], column);
        for (int pair = 0; pair < 2; ++pair) {
          const __m512bh weights = _mm512_cvtne2ps_pbh(high.decode(quads, bytes[pair][1]),
                                                       low.decode(quads, bytes[pair][0]));
          _mm512_storeu_si512(out + ((quad * 2 + pair) * kOutputs + column) * 2, (__m512i)weights);
        }
      });
    }
  }
}

}  // namespace

void panel_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) noexcept {
  PanelInput<BFloat16> rest = x;
  while (rest.num_rows > 0) {
    const int64_t num_rows = rest.num_rows < 4 ? rest.num_rows : 4;
    switch (num_rows) {
      case 1: rows_product<1>(w, rest, y); break;
      case 2: rows_product<2>(w, rest, y); break;
      case 3: rows_product<3>(w, rest, y); break;
      default: rows_product<4>(w, rest, y); break;
    }
    rest.num_rows -= num_rows;
    rest.data += num_rows * rest.stride;
    y += num_rows * kOutputs;
  }
}

void unpack_panel(const PanelView& w, BFloat16* out) noexcept {
  switch (w.type) {
    case WeightType::kInt8x2: return unpack_groups<WeightType::kInt8x2>(w, out);
    case WeightType::kInt6x2: return unpack_groups<WeightType::kInt6x2>(w, out);
    case WeightType::kInt5: return unpack_groups<WeightType::kInt5>(w, out);
    case WeightType::kInt4: return unpack_groups<WeightType::kInt4>(w, out);
    default: return unpack_groups<WeightType::kInt8>(w, out);
  }
}

void round_to_bfloat16(const float* x, int64_t size, BFloat16* out, int64_t padded_size) noexcept {
  for (int64_t i = 0; i < padded_size; i += kLanes) {
    const int64_t count = size - i < 0 ? 0 : size - i < kLanes ? size - i : kLanes;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const __m512 values = _mm512_maskz_loadu_ps(mask, x + i);
    const auto rounded = (__m256i)_mm512_cvtneps_pbh(values);
    const int64_t room = padded_size - i < kLanes ? padded_size - i : kLanes;
    const auto keep = static_cast<__mmask16>((1u << room) - 1);
    _mm256_mask_storeu_epi16(out + i, keep, rounded);
  }
}

}  // namespace kvquant::avx512bf16
