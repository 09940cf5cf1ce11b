// Panels of bf16 weights times rows in the matrix registers of Intel AMX: 16 rows of all 64 outputs
// are summed in four of them. A panel as it is stored has 32 inputs of 16 outputs the way a
// register takes them; rows come as tiles, so that a register's rows are one piece of memory.
//
// Inputs go in blocks whose weights stay in the first cache while all rows pass; sums wait in `y`
// meanwhile. For few rows what bounds it is reading the weights.
#include "ops/amx_tiles_inl.h"
#include "ops/linear_panel.h"

namespace kvquant::amxbf16 {
namespace {

constexpr int kPairBytes = 2 * kPanelOutputs * 2;             // two inputs of all outputs
constexpr int64_t kStepBytes = kTileInputs / 2 * kPairBytes;  // of the panel: 4 KiB
constexpr int64_t kTileSize = kTileRows * kTileInputs;        // numbers of a tile of rows
// 32 KiB of weights. With 4 and 16 prefill is 8 and 12% slower (two cores of Granite Rapids).
constexpr int64_t kStepsPerBlock = 8;
constexpr int64_t kAhead = 2 * kStepBytes;  // weights are asked for

void add_step(const BFloat16* x, const std::byte* weights) {
  _tile_loadd(4, x, kTileInputs * sizeof(BFloat16));
  _tile_loadd(5, weights, kPairBytes);
  _tile_dpbf16ps(0, 4, 5);
  _tile_loadd(6, weights + 64, kPairBytes);
  _tile_dpbf16ps(1, 4, 6);
  _tile_loadd(7, weights + 128, kPairBytes);
  _tile_dpbf16ps(2, 4, 7);
  _tile_loadd(5, weights + 192, kPairBytes);
  _tile_dpbf16ps(3, 4, 5);
}

void load_sums(const float* y) {
  constexpr int kRowBytes = kPanelOutputs * sizeof(float);
  _tile_loadd(0, y, kRowBytes);
  _tile_loadd(1, y + 16, kRowBytes);
  _tile_loadd(2, y + 32, kRowBytes);
  _tile_loadd(3, y + 48, kRowBytes);
}

void store_sums(float* y) {
  constexpr int kRowBytes = kPanelOutputs * sizeof(float);
  _tile_stored(0, y, kRowBytes);
  _tile_stored(1, y + 16, kRowBytes);
  _tile_stored(2, y + 32, kRowBytes);
  _tile_stored(3, y + 48, kRowBytes);
}

void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Asks for the weights of a step.
void prefetch(const std::byte* weights) {
  for (int64_t i = 0; i < kStepBytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(weights) + i, _MM_HINT_T0);
  }
}

// One row's inputs of a tile.
__m512i round_inputs(const float* x, int64_t count) {
  const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

}  // namespace

void pack_tiles(const PanelInput<float>& x, int64_t num_in, BFloat16* out) noexcept {
  const int64_t num_tiles = (num_in + kTileInputs - 1) / kTileInputs;
  const int64_t padded_rows = (x.num_rows + kTileRows - 1) / kTileRows * kTileRows;
  for (int64_t row = 0; row < padded_rows; ++row) {
    const float* source = x.data + row * x.stride;
    BFloat16* target =
        out + (row / kTileRows * num_tiles * kTileRows + row % kTileRows) * kTileInputs;
    for (int64_t i = 0; i < num_tiles; ++i, source += kTileInputs, target += kTileSize) {
      const int64_t left = num_in - i * kTileInputs;
      const int64_t count = row >= x.num_rows ? 0 : left < kTileInputs ? left : kTileInputs;
      _mm512_storeu_si512(target, round_inputs(source, count));
    }
  }
}

void panel_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) noexcept {
  const TileRegisters registers(kAllOf16Rows);
  const int64_t num_steps = w.padded_in / kTileInputs;
  for (int64_t first = 0; first < num_steps; first += kStepsPerBlock) {
    const int64_t end = first + kStepsPerBlock < num_steps ? first + kStepsPerBlock : num_steps;
    for (int64_t row = 0; row < x.num_rows; row += kTileRows) {
      float* sums = y + row * kPanelOutputs;
      first == 0 ? clear_sums() : load_sums(sums);
      const BFloat16* tiles = x.data + row * w.padded_in;
      for (int64_t step = first; step < end; ++step) {
        const std::byte* weights = w.data + step * kStepBytes;
        if (row == 0) prefetch(weights + kAhead);
        add_step(tiles + step * kTileSize, weights);
      }
      store_sums(sums);
    }
  }
}

}  // namespace kvquant::amxbf16
