// Panel kernels with the bf16 dot product of AVX-512: a lane is an output, its two halves are
// neighbouring inputs, as the kBF16 panel stores them.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics' undefined vectors (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "ops/linear_panel.h"

namespace kvquant::avx512bf16 {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 4;       // to a panel's outputs
constexpr int64_t kGroup = 32;    // kWeightGroup
constexpr int64_t kOutputs = 64;  // kPanelOutputs

// Two vectors of f32 as bf16 side by side: even in the low halves of the lanes, odd in the high.
__m512i interleave_bf16(__m512 even, __m512 odd, __m512i order) {
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  return _mm512_permutexvar_epi16(order, both);
}

__m512i interleaving_order() {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 16; ++i) {
    order[2 * i] = static_cast<uint16_t>(i);
    order[2 * i + 1] = static_cast<uint16_t>(i + 16);
  }
  return _mm512_load_si512(order);
}

__m512 decode(const uint8_t* codes, __m512 scale, __m512 offset) {
  const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(codes));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), scale, offset);
}

// One vector of outputs of a kInt8 panel.
class Int8Column {
 public:
  Int8Column(const PanelView& w, int column)
      : codes_(reinterpret_cast<const uint8_t*>(w.data) + column),
        scales_(reinterpret_cast<const uint16_t*>(w.data + w.padded_in * kOutputs) + column),
        offsets_(scales_ + w.padded_in / kGroup * kOutputs) {}

  void start_group(int64_t group) {
    scale_ = halves(scales_ + group * kOutputs);
    offset_ = halves(offsets_ + group * kOutputs);
  }
  // Weights of inputs `in` (even) and in + 1.
  __m512i pair(int64_t in, __m512i order) const {
    const uint8_t* at = codes_ + in * kOutputs;
    return interleave_bf16(decode(at, scale_, offset_), decode(at + kOutputs, scale_, offset_),
                           order);
  }

 private:
  static __m512 halves(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
  }

  const uint8_t* codes_;
  const uint16_t* scales_;
  const uint16_t* offsets_;
  __m512 scale_ = _mm512_setzero_ps(), offset_ = _mm512_setzero_ps();
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
void product_int8(const PanelView& w, const PanelInput<BFloat16>& x,
                  __m512 (&sum)[kRows][kVectors]) {
  const __m512i order = interleaving_order();
  Int8Column columns[kVectors] = {{w, 0}, {w, kLanes}, {w, 2 * kLanes}, {w, 3 * kLanes}};
  for (int64_t group = 0; group < w.padded_in / kGroup; ++group) {
    for (auto& column : columns) column.start_group(group);
    for (int64_t in = group * kGroup; in < (group + 1) * kGroup; in += 2) {
      __m512i pair[kVectors];
      for (int i = 0; i < kVectors; ++i) pair[i] = columns[i].pair(in, order);
      add_pair(pair, x, in, sum);
    }
  }
}

template <int kRows>
void rows_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) {
  __m512 sum[kRows][kVectors];
  for (auto& row : sum) {
    for (__m512& v : row) v = _mm512_setzero_ps();
  }
  if (w.type == WeightType::kBF16) {
    product_bf16(w, x, sum);
  } else {
    product_int8(w, x, sum);
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVectors; ++i) {
      _mm512_storeu_ps(y + row * kOutputs + i * kLanes, sum[row][i]);
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
  if (w.type == WeightType::kBF16) {
    __builtin_memcpy(out, w.data, static_cast<size_t>(w.padded_in * kOutputs) * sizeof(BFloat16));
    return;
  }
  const __m512i order = interleaving_order();
  for (int64_t group = 0; group < w.padded_in / kGroup; ++group) {
    for (int i = 0; i < kVectors; ++i) {
      Int8Column column(w, i * kLanes);
      column.start_group(group);
      for (int64_t in = group * kGroup; in < (group + 1) * kGroup; in += 2) {
        BFloat16* at = out + in * kOutputs + i * 2 * kLanes;
        _mm512_storeu_si512(at, column.pair(in, order));
      }
    }
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
