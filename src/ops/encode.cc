#include "ops/encode.h"

#include <fmt/format.h>

#include "base/check.h"
#include "formats/kv_block.h"
#include "ops/encode_cuda.h"

namespace kvquant {

void encode_tile(const EncodeJob& job, Backend backend) {
  check_arg(job.first_token >= 0 && job.num_tokens >= 0 &&
                job.first_token + job.num_tokens <= kTileTokens,
            fmt::format("encode: tokens {} + {} don't fit a tile of {}", job.first_token,
                        job.num_tokens, kTileTokens));
  check_arg(0 < job.head_dim && job.head_dim <= kMaxNuqHeadDim && job.head_dim % 8 == 0,
            fmt::format("encode: head_dim {} is not a multiple of 8 up to {}", job.head_dim,
                        kMaxNuqHeadDim));
  check_arg(is_code_width(job.codebook->bits), fmt::format("encode: {} bits", job.codebook->bits));
  check_arg((job.low != nullptr) == (job.high != nullptr) &&
                (job.low == nullptr || job.outliers != nullptr),
            "encode: low, high and outliers belong together");
  if (backend == Backend::kCudaEmulated) return emulated::encode_tiles({&job, 1});
  if (backend == Backend::kCuda) return cuda::encode_tiles({&job, 1});
  if (backend != Backend::kReference && simd::encode_tile(job)) return;
  ref::encode_tile(job);
}

}  // namespace kvquant
