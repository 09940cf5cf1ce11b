// Number formats that weights have in files: GGUF's block formats and the plain floats of both GGUF
// and safetensors, as a table. A new format is a row of the table in dequant.cc with its functions.
//
//   name   values  bytes  block                                       value i
//   F32         1      4  float                                       as it is
//   F16         1      2  Half                                        as it is
//   BF16        1      2  BFloat16                                    as it is
//   Q8_0       32     34  Half d; int8 q[32]                          q[i] d
//   Q4_1       32     20  Half d, m; uint8 n[16]: n[i] low nibble is  code d + m
//                         code i, high nibble code i + 16
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "ops/linear.h"

namespace kvquant {

// Blocks need no alignment.
struct WeightFormat {
  const char* name;    // GGUF's and safetensors' name of it
  uint32_t gguf_type;  // number in GGUF files
  int64_t block_size;  // values of one block: a row is a whole number of blocks
  int64_t block_bytes;

  // blocks [num_blocks * block_bytes], out [num_blocks * block_size].
  void (*to_floats)(const std::byte* blocks, int64_t num_blocks, float* out) noexcept;

  // The same values as 8-bit groups, exactly: scale * code + offset in f32 is what to_floats gives
  // (but for the sign of zero). Null when the format is not made of groups.
  void (*to_groups)(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept;

  // False when some block can't be such a group: its offset overflows Half. Null: all can.
  bool (*fits_groups)(const std::byte* blocks, int64_t num_blocks) noexcept;
};

std::span<const WeightFormat> weight_formats();

// Null when it is not in the table.
const WeightFormat* find_weight_format(uint32_t gguf_type);
const WeightFormat* find_weight_format(std::string_view name);

// "Q6_K" for 14, also for formats that are not in the table; "type 99" for unknown numbers.
std::string gguf_type_name(uint32_t gguf_type);

// "F32, F16, ...", for messages.
std::string weight_format_names();

}  // namespace kvquant
