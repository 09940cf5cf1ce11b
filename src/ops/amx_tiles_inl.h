// The registers of Intel AMX: eight tiles of up to 16 rows of 64 bytes. For files that are compiled
// for them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kvquant::amxbf16 {

// The memory format of ldtilecfg. Rows of unused registers are 0.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t num_rows[16];
};

inline constexpr TileConfig kAllOf16Rows{
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Others keep their configuration from call to call (oneDNN does): it is put back.
class TileRegisters {
 public:
  explicit TileRegisters(const TileConfig& config) {
    _tile_storeconfig(&before_);
    // GCC 12 believes that these instructions touch 8 bytes: it must keep nothing of the others.
    asm volatile("" : "+m"(before_));
    asm volatile("" : : "m"(config));
    _tile_loadconfig(&config);
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_loadconfig(&before_); }

 private:
  TileConfig before_;
};

}  // namespace kvquant::amxbf16
