// The CUDA kernel that encodes, run by the CPU.
#include "base/buffer.h"
#include "ops/cuda_block.h"
#include "ops/encode_cuda_tile.h"

namespace kvquant::emulated {

void encode_tiles(std::span<const EncodeJob> jobs) {
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto layout = encode_shared_layout(jobs[i].head_dim, jobs[i].feedback != nullptr);
    Buffer<std::byte> shared(layout.num_bytes);
    for (const ThreadOrder order : {ThreadOrder::kBackward, ThreadOrder::kForward}) {
      encode_tile_on(Block(static_cast<int64_t>(i), shared.data(), order), jobs.data());
    }
  }
}

}  // namespace kvquant::emulated
