// What a model does between its matrix products and attention, row by row: the parameters of
// kernels. All pointers are addresses of the device. Strides are in floats.
//
//   cuda_rows_kernels.h   the bodies
//   cuda_device.h         runs them
#pragma once

#include <cstdint>

#include "base/half.h"
#include "ops/cuda_fragments.h"

namespace kvquant {

// RMSNorm (norm.h) of num_parts parts of every row, side by side, each by itself. x may be out.
struct CudaNorm {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const float* weight = nullptr;  // [width]
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t num_rows = 0;
  int64_t num_parts = 1;
  int64_t width = 0;
  float eps = 0;

  int64_t num_blocks() const { return num_rows * num_parts; }
  int64_t shared_bytes() const { return kBlockWarps * 4; }
  bool operator==(const CudaNorm&) const = default;
};

// Rotates heads of rows in place (rope.h); row i is at positions[i].
struct CudaRope {
  float* x = nullptr;  // [num_rows, num_heads, head_dim]
  int64_t stride = 0;
  const int64_t* positions = nullptr;  // [num_rows]
  const float* cos = nullptr;          // [positions, head_dim / 2]
  const float* sin = nullptr;
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaRope&) const = default;
};

// out = silu(gate) * up, all [num_rows, width]. gate may be out.
struct CudaGate {
  const float* gate = nullptr;
  const float* up = nullptr;
  int64_t stride = 0;  // of both
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaGate&) const = default;
};

// out [num_rows, width] += x, whose stride may be 0: a bias.
struct CudaAdd {
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaAdd&) const = default;
};

// Rows `tokens` of a table, as floats into out [num_rows, width]. One of the tables is null.
struct CudaEmbed {
  const float* table = nullptr;  // [vocabulary, width]
  const BFloat16* bf16_table = nullptr;
  const int32_t* tokens = nullptr;  // [num_rows], within the vocabulary
  float* out = nullptr;
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaEmbed&) const = default;
};

// Whether all numbers of each row are finite.
struct CudaFinite {
  const float* x = nullptr;
  int64_t stride = 0;
  int32_t* out = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return kBlockThreads * 4; }
  bool operator==(const CudaFinite&) const = default;
};

}  // namespace kvquant
