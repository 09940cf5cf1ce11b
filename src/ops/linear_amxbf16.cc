// Panels of bf16 weights times a few rows in the matrix registers of Intel AMX: a register of 32
// inputs of 16 outputs as the panel stores them, one of the rows' same inputs. What bounds it is
// reading the weights.
#include "ops/amx_tiles_inl.h"
#include "ops/linear_panel.h"

namespace kvquant::amxbf16 {
namespace {

constexpr int64_t kDepth = 32;                               // inputs of a register
constexpr int kPairBytes = 2 * kPanelOutputs * 2;            // two inputs of all outputs
constexpr int64_t kStepBytes = kDepth / 2 * kPairBytes;      // of the panel
constexpr int64_t kAhead = 2 * kStepBytes;                   // reads so far ahead

// Sums and inputs have a register's row for each row, weights one for each two inputs.
TileConfig config_of(int64_t num_rows) {
  TileConfig config = kAllOf16Rows;
  for (int i = 0; i < 5; ++i) config.num_rows[i] = static_cast<uint8_t>(num_rows);
  return config;
}

void multiply(const std::byte* weights, int64_t num_steps, const BFloat16* x, size_t x_bytes) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < num_steps; ++step, weights += kStepBytes, x += kDepth) {
    for (int64_t i = 0; i < kStepBytes; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(weights) + kAhead + i, _MM_HINT_T0);
    }
    _tile_loadd(4, x, x_bytes);
    _tile_loadd(5, weights, kPairBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, weights + 64, kPairBytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(5, weights + 128, kPairBytes);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(6, weights + 192, kPairBytes);
    _tile_dpbf16ps(3, 4, 6);
  }
}

}  // namespace

void panel_product(const PanelView& w, const PanelInput<BFloat16>& x, float* y) noexcept {
  constexpr int kRowBytes = kPanelOutputs * sizeof(float);
  const auto x_bytes = static_cast<size_t>(x.stride) * sizeof(BFloat16);
  for (int64_t first = 0; first < x.num_rows; first += 16) {
    const int64_t num_rows = x.num_rows - first < 16 ? x.num_rows - first : 16;
    const TileConfig config = config_of(num_rows);
    const TileRegisters registers(config);
    multiply(w.data, w.padded_in / kDepth, x.data + first * x.stride, x_bytes);
    float* out = y + first * kPanelOutputs;
    _tile_stored(0, out, kRowBytes);
    _tile_stored(1, out + 16, kRowBytes);
    _tile_stored(2, out + 32, kRowBytes);
    _tile_stored(3, out + 48, kRowBytes);
  }
}

}  // namespace kvquant::amxbf16
