// Encoding on CUDA devices: one tile of one KV head a block, all in shared memory: rows in, codes,
// marks of outliers, packed words out. The bytes are the reference's: every operation is rounded by
// itself (kernels are compiled without contraction), fused ones are written as such.
//
//   encode_cuda_tile.h   the body of the kernel
//   encode_cuda.cu       launches it
//   encode_emulated.cc   runs it on the CPU
#pragma once

#include <cstdint>
#include <span>

#include "ops/encode.h"

namespace kvquant {

// Bytes of shared memory that a block needs: rows, errors of feedback, codes, midpoints and levels.
struct EncodeSharedLayout {
  int64_t row_stride;  // floats between tokens: odd, so that tokens are in different banks
  int64_t errors, codes, levels, midpoints;
  int64_t num_bytes;
};

constexpr EncodeSharedLayout encode_shared_layout(int64_t head_dim, bool has_feedback) {
  EncodeSharedLayout layout{};
  layout.row_stride = head_dim + 1;
  layout.errors = kTileTokens * layout.row_stride * 4;
  layout.codes = layout.errors + (has_feedback ? kTileTokens * head_dim * 4 : 0);
  layout.levels = layout.codes + kTileTokens * head_dim;
  layout.midpoints = layout.levels + kMaxLevels * 4;
  layout.num_bytes = layout.midpoints + kMaxLevels * 4;
  return layout;
}

// Jobs whose tiles are all different, as encode_tile() does them; checked by the caller.
namespace cuda {
// Of memory of the host, which is copied. Throws DeviceError, also in a program without CUDA.
void encode_tiles(std::span<const EncodeJob> jobs);
}  // namespace cuda
namespace emulated {
void encode_tiles(std::span<const EncodeJob> jobs);
}  // namespace emulated

}  // namespace kvquant
