// Number formats that weights have in files: GGUF's block formats and the plain floats of both GGUF
// and safetensors, as a table. A new format is a row of the table in dequant.cc with its functions.
//
//   name   values  bytes  block                                       value
//   F32         1      4  float                                       as it is
//   F16         1      2  Half                                        as it is
//   BF16        1      2  BFloat16                                    as it is
//   Q8_0       32     34  Half d; int8 q                              q d
//   Q4_0       32     18  Half d; codes of 4 bits                     (code - 8) d
//   Q4_1       32     20  Half d, m; codes of 4 bits                  code d + m
//   Q5_0       32     22  Half d; codes of 5 bits                     (code - 16) d
//   Q5_1       32     24  Half d, m; codes of 5 bits                  code d + m
//   Q4_K      256    144  Half d, s; 6 bits a, b of 32 values each;   code a d - b s
//                         codes of 4 bits
//   Q5_K      256    176  as Q4_K with codes of 5 bits                code a d - b s
//   Q6_K      256    210  Half d; int8 a of 16 values each;           (code - 32) a d
//                         codes of 6 bits
//
// dequant_blocks.h has the bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "ops/linear.h"

namespace kvquant {

// The values of a format as groups of codes with one scale and one offset each.
struct WeightGroups {
  int64_t size = 0;  // values of a group, 16 or 32; 0: the format is not made of groups
  int bits = 0;      // of a code, at most 8

  // scale * code + offset in f32 is what to_floats gives (but for the sign of zero). Else scale and
  // offset are rounded to Half: relative errors of at most 2^-11, a quarter of bf16's.
  bool are_exact = false;

  void (*convert)(const std::byte* blocks, int64_t num_blocks, QuantizedRow out) noexcept = nullptr;

  // False when some block can't be such groups: a scale or an offset overflows Half. Null: all can.
  bool (*fit)(const std::byte* blocks, int64_t num_blocks) noexcept = nullptr;
};

// Blocks need no alignment.
struct WeightFormat {
  const char* name;    // GGUF's and safetensors' name of it
  uint32_t gguf_type;  // number in GGUF files
  int64_t block_size;  // values of one block: a row is a whole number of blocks
  int64_t block_bytes;

  // blocks [num_blocks * block_bytes], out [num_blocks * block_size].
  void (*to_floats)(const std::byte* blocks, int64_t num_blocks, float* out) noexcept;

  WeightGroups groups;
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
