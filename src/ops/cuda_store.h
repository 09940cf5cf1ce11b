// What a cache on a device does with the rows of a chunk: the parameters of kernels. All pointers
// are addresses of the device; bytes are those of docs/formats.md, equal to the bit to what the CPU
// writes.
//
//   cuda_store_kernels.h   the bodies, those that only move rows: cuda_move_kernels.h
//   cuda_device.h          runs them
#pragma once

#include <cstdint>

#include "base/half.h"
#include "formats/dense_tile.h"
#include "formats/outlier_page.h"
#include "ops/cuda_fragments.h"
#include "ops/encode_cuda.h"

namespace kvquant {

// Rows to fp16.
struct CudaNarrowTarget {
  const float* from = nullptr;
  Half* to = nullptr;
};
struct CudaNarrow {
  const CudaNarrowTarget* targets = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaNarrow&) const = default;
};

// fp16 rows from one place to another; none overlap.
struct CudaMoveTarget {
  const Half* from = nullptr;
  Half* to = nullptr;
};
struct CudaMove {
  const CudaMoveTarget* targets = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaMove&) const = default;
};

// fp16 rows as floats; neither has gaps.
struct CudaWiden {
  const Half* rows = nullptr;  // [num_rows, width]
  float* out = nullptr;
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaWiden&) const = default;
};

// Rows to bf16 without gaps: factors of a matrix product.
struct CudaRound {
  const float* rows = nullptr;  // [num_rows, width]
  int64_t stride = 0;           // floats
  BFloat16* out = nullptr;
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaRound&) const = default;
};

// Rotates every head of rows in place: hadamard_rows() of hadamard.h, step by step.
struct CudaHadamard {
  float* rows = nullptr;  // [num_rows, num_heads, head_dim], without gaps
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;  // a power of two
  float norm = 0;        // 1 / sqrt(head_dim)

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaHadamard&) const = default;
};

// How many numbers of each row are outside [zero - scale, zero + scale] of their channel.
struct CudaOutside {
  const Half* rows = nullptr;    // [num_rows, width]
  const Half* scales = nullptr;  // [width]
  const Half* zeros = nullptr;
  int32_t* counts = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  int64_t width = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return kBlockThreads * 4; }
  bool operator==(const CudaOutside&) const = default;
};

// One token, or the latents of one head of it, and where its scale and zero point go in the block.
struct CudaFitTarget {
  const float* row = nullptr;  // [width]
  uint8_t* marks = nullptr;    // [mark_width], with outliers
  Half* scale = nullptr;
  Half* zero = nullptr;
};

// Scale and zero point of values, token by token, and marks of outliers: fit_row() of
// quant/ranges.h.
struct CudaFit {
  const CudaFitTarget* targets = nullptr;  // [num_rows]
  float* scales = nullptr;                 // [num_rows], as fp16 holds them; here and below
  float* zeros = nullptr;
  int64_t num_rows = 0;
  int64_t width = 0;
  int64_t mark_width = 0;    // there are no outliers behind `width`
  int64_t num_outliers = 0;  // on either end

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return kBlockThreads * 8; }
  bool operator==(const CudaFit&) const = default;
};

// A tile or part of it, as encode_tile() does it, but codes under outliers become 0.
struct CudaEncodeJob {
  EncodeJob encode;  // outliers: scratch for a mask per channel, or null
  // Of values with outliers, which have no thresholds: 1 where one is, mark_stride between tokens.
  const uint8_t* marks = nullptr;
  int64_t mark_stride = 0;
  int32_t* num_outliers = nullptr;  // of the job, written when there are masks
};

struct CudaEncode {
  const CudaEncodeJob* jobs = nullptr;  // of different tiles
  int64_t num_jobs = 0;
  int64_t most_shared_bytes = 0;  // of a job's encode_shared_layout()

  int64_t num_blocks() const { return num_jobs; }
  int64_t shared_bytes() const { return most_shared_bytes; }
  bool operator==(const CudaEncode&) const = default;
};

// Adds the outliers of an encoded job to its list, token after token.
struct CudaOutlierJob {
  const uint64_t* masks = nullptr;  // [head_dim]
  const float* rows = nullptr;      // [num_tokens, head_dim]
  int64_t row_stride = 0;
  int64_t head_dim = 0;
  int64_t first_token = 0;  // within the tile
  int64_t num_tokens = 0;
  int64_t first_entry = 0;  // of the list
  // Of the list: pages[0] is page first_entry / kOutliersPerPage.
  OutlierPage* const* pages = nullptr;
  uint32_t* start = nullptr;  // of the tile, in its block
  uint16_t* count = nullptr;
};

struct CudaOutliers {
  const CudaOutlierJob* jobs = nullptr;  // of different lists or tiles
  int64_t num_jobs = 0;

  int64_t num_blocks() const { return num_jobs; }
  int64_t shared_bytes() const { return kTileTokens * 4; }
  bool operator==(const CudaOutliers&) const = default;
};

// One token of a dense side, and where it goes.
struct CudaDenseTarget {
  const float* row = nullptr;  // [num_heads, head_dim]
  std::byte* tile = nullptr;   // of head 0; those of the others lie behind it
  int64_t token = 0;           // within the tile
  KvSide side = KvSide::kValue;
  const float* cos = nullptr;  // [head_dim / 2], of keys; null: nothing is rotated
  const float* sin = nullptr;
};

// Rows into dense tiles; keys may be rotated first.
struct CudaDense {
  const CudaDenseTarget* targets = nullptr;  // [num_rows]
  DenseType type = DenseType::kF16;
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;

  int64_t num_blocks() const { return num_rows; }
  int64_t shared_bytes() const { return 0; }
  bool operator==(const CudaDense&) const = default;
};

}  // namespace kvquant
