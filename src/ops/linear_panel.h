// The kernels behind linear(): products of a few rows of x with one panel of 64 outputs, and what
// is done to a panel of results. Internal to ops. Plain structs and functions only, because
// implementations are compiled for different instruction sets. All are noexcept and allocate
// nothing.
//
// Products y are [num_rows][64] without gaps. Inputs x are padded with zeros to padded_in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear.h"

namespace kvquant {

// One panel of a PackedMatrix, in the layout of linear.h.
struct PanelView {
  const std::byte* data;
  int64_t padded_in;
  WeightType type;
};

// 32 inputs of a row of x in two bytes each: x = scale * (128 * high + low).
struct InputGroup {
  int8_t high[kWeightGroup];  // -127 ... 127
  int8_t low[kWeightGroup];   // -64 ... 63
  float scale;
  float sum;           // of the 32 inputs as they are represented
  float part_sums[2];  // of the first and the last 16
};

// Rows of x, `stride` elements apart, each with padded_in inputs.
template <class T>
struct PanelInput {
  const T* data;
  int64_t stride;
  int64_t num_rows;
};

// Where a panel's results go: num_columns <= 64 columns of rows that are `stride` floats apart.
struct PanelOutput {
  float* data;
  int64_t stride;
  int64_t num_rows;
  int64_t num_columns;
};

namespace ref {
// Sums in double; the definition of correct.
void panel_product(const PanelView& w, const PanelInput<float>& x, float* y) noexcept;
void store_panel(const float* y, const PanelOutput& out, Epilogue epilogue) noexcept;
void store_swiglu(const float* gate, const float* up, const PanelOutput& out) noexcept;
}  // namespace ref

namespace simd {
// One fused multiply-add per input and output, in the order of the inputs.
void panel_product(const PanelView& w, const PanelInput<float>& x, float* y) noexcept;
// The weights as floats, [padded_in][64].
void unpack_panel(const PanelView& w, float* out) noexcept;
void store_panel(const float* y, const PanelOutput& out, Epilogue epilogue) noexcept;
void store_swiglu(const float* gate, const float* up, const PanelOutput& out) noexcept;
}  // namespace simd

// Requires the CPU features of Backend::kAvx512Bf16.
namespace avx512bf16 {
// For panels of groups. Sums of products that share a scale are exact integers, sums of those f32.
void panel_product(const PanelView& w, const PanelInput<InputGroup>& x, float* y) noexcept;
// Rounds size inputs, a multiple of 32, to multiples of max|x| / 16256 of their group. The scale of
// a group with infinity or NaN is NaN.
void quantize_input(const float* x, int64_t size, InputGroup* out) noexcept;
// For kBF16. Two products are added to the f32 sum at a time.
void panel_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) noexcept;
// For panels of groups: the weights rounded to bf16, in the layout of kBF16.
void unpack_panel(const PanelView& w, BFloat16* out) noexcept;
// out[i] = x[i] rounded to nearest even, subnormals to zero; then zeros up to padded_size.
void round_to_bfloat16(const float* x, int64_t size, BFloat16* out, int64_t padded_size) noexcept;
}  // namespace avx512bf16

// Requires Backend::kAmxBf16.
namespace amxbf16 {
// Rows of x come as tiles, [num_rows / 16][padded_in / 32][16][32].
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileInputs = 32;
// Rounds rows of num_in inputs to such tiles, to nearest even, subnormals to zero; zeros fill up.
void pack_tiles(const PanelInput<float>& x, int64_t num_in, BFloat16* out) noexcept;
// For kBF16; num_rows is a multiple of 16. Two products are added to the f32 sum at a time,
// subnormals count as zero.
void panel_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) noexcept;
}  // namespace amxbf16

}  // namespace kvquant
