// Attention on CUDA devices: what kernels read, as plain data. All pointers are addresses of the
// device (of the CPU, when it plays the device: cuda_block.h). Tiles, blocks, pages and rows are
// the same bytes as on the CPU, so they are copied as they are and codes stay equal to the bit.
//
//   attend_cuda_pack.cc   from AttendJob to these
//   attend_cuda_tile.h    which tile comes next, and where its parts are
//   attend_cuda_keys.h    keys of a tile into shared memory; attend_cuda_values.h: values
//   attend_cuda_latent_keys.h   keys that are latents, and queries as they need them
//   attend_cuda_load.h    tile after tile, the next one's codes on their way meanwhile
//   attend_cuda_bf16.h    a task on tensor cores
//   attend_cuda_direct.h  the same of few rows, codes of 2, 3 and 4 bits never decoded to memory
//   attend_cuda_f32.h     a task in f32
//   attend_cuda_merge.h   parts of a query, merged in order
//   attend_cuda.cu        launches these
//   attend_emulated.cc    runs them on the CPU
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/device_code.h"
#include "formats/precision.h"
#include "ops/attend.h"
#include "ops/attend_plan.h"
#include "ops/cuda_image.h"
#include "ops/softmax_state.h"

namespace kvquant {

enum class TileSource : int32_t { kDense, kRows, kCoded };

// Keys or values of a run; the members of AttendRun and CodedSide, of a job's head 0.
struct CudaSide {
  TileSource source = TileSource::kDense;
  DenseType type = DenseType::kF16;
  // kDense: pieces of tiles_per_piece tiles, tile_stride bytes apart, the first one piece_offset
  // bytes behind where the piece begins. Tile 0 of the run is tile first_tile of them.
  const void* const* pieces = nullptr;
  int64_t tiles_per_piece = 1;
  int64_t tile_stride = 0;
  int64_t piece_offset = 0;
  int64_t first_tile = 0;
  int64_t offset = 0;          // kDense: tokens before token 0 in the first tile
  const Half* rows = nullptr;  // kRows
  int64_t row_stride = 0;
  // From one head to the next: bytes of dense tiles, numbers of rows and of scales.
  int64_t head_step = 0;
  // kCoded:
  const NuqCodebook* codebook = nullptr;
  int64_t codebook_step = 0;  // from one head to the next, as is page_step
  KvBlockShape shape{};
  KvBlockLayout layout{};
  int64_t head = 0;
  const std::byte* const* blocks = nullptr;
  const Half* scales = nullptr;
  const Half* zeros = nullptr;
  const int32_t* segment_starts = nullptr;
  int64_t num_segment_starts = 0;
  int64_t segment_stride = 0;
  const OutlierPage* const* pages = nullptr;
  int64_t page_step = 0;
  bool hadamard = false;
  float logit_bias = 0;
};

struct CudaRun {
  CudaSide keys, values;
  // Keys before RoPE: cos and sin of the positions from first_position on, [head_dim / 2] each, and
  // those of a tile's tokens relative to token RopeTiles::kMiddle, [head_dim / 2][64].
  const float* cos = nullptr;
  const float* sin = nullptr;
  const float* tile_cos = nullptr;
  const float* tile_sin = nullptr;
  RunWindow window{};
  ValueKind kind = ValueKind::kPlain;

  // Whether keys are before RoPE: queries then meet them turned back by the tile's middle.
  constexpr bool is_turned() const {
    return keys.source != TileSource::kDense && !has_latent_keys();
  }
  // Of keys after RoPE: queries then meet them projected.
  constexpr bool has_latent_keys() const { return keys.shape.has_latents; }
};

// The LatentMap of a job's keys or values. width 0: they are no latents.
struct CudaLatents {
  int64_t rank = 0;
  int64_t width = 0;
  const float* mean = nullptr;    // [head_dim]
  const float* decode = nullptr;  // [rank, head_dim]
};

struct CudaJob {
  const float* query = nullptr;  // [num_queries, group, head_dim]
  float* out = nullptr;          // [num_queries, group, head_dim]
  float* latent_sums = nullptr;  // [num_queries, group, latents.width]; null: they are expanded
  int64_t query_stride = 0;      // floats between tokens
  int64_t out_stride = 0;
  int64_t latent_stride = 0;
  int64_t latent_width = 0;  // of latent_sums
  CudaLatents latents{};     // of values
  CudaLatents key_latents{};
  int64_t first_position = 0;
  int64_t head = 0;  // of the runs
  int64_t first_run = 0;
  int64_t num_runs = 0;
};

// Where the sums of row `row` behind a query go; of jobs with a latent_width.
KVQUANT_DEVICE float* latent_sums_of(const CudaJob& job, int64_t first_query, int64_t row,
                                     int64_t group) {
  return job.latent_sums + (first_query + row / group) * job.latent_stride +
         row % group * job.latent_width;
}

// The parameters of all kernels of one call.
struct CudaAttend {
  int32_t head_dim = 0;
  int32_t group = 0;
  float log2_scale = 0;  // scale * log2(e)
  // Room in shared memory for the codes of a tile's keys and values, which are copied there while
  // the tile before is worked on. 0: they are read where they lie.
  int32_t staged_key_bytes = 0;
  int32_t staged_value_bytes = 0;
  int32_t direct_bits = 0;  // of the widest codes that attend_cuda_direct.h multiplies; 0: none
  const CudaJob* jobs = nullptr;
  const CudaRun* runs = nullptr;
  const AttendTask* tasks = nullptr;
  const AttendMerge* merges = nullptr;
  SoftmaxState* partial_states = nullptr;  // [num_partial_rows]
  float* partial_sums = nullptr;           // [num_partial_rows, head_dim]
  // How many tasks and merges there are where more blocks are launched; null: as many as blocks.
  const int64_t* counts = nullptr;

  bool operator==(const CudaAttend&) const = default;
};

KVQUANT_DEVICE bool has_task(const CudaAttend& call, int64_t index) {
  return call.counts == nullptr || index < call.counts[0];
}
KVQUANT_DEVICE bool has_merge(const CudaAttend& call, int64_t index) {
  return call.counts == nullptr || index < call.counts[1];
}

// Of a block on all devices that kernels are compiled for; 8.0 has the least.
inline constexpr int64_t kMostSharedBytes = int64_t{163} << 10;

// Rows of a task, at most: of f32 products, of decode steps, and of prefill, where wide heads leave
// registers and shared memory for half as many.
inline constexpr int64_t kCudaF32Rows = 8;
inline constexpr int64_t kCudaFewRows = 16;
inline constexpr int64_t kCudaNarrowDim = 128;
constexpr int64_t cuda_rows(int64_t head_dim) { return head_dim <= kCudaNarrowDim ? 64 : 32; }

// What one call runs: descriptors whose pointers are those of an image.
struct CudaAttendCall {
  AttendPlan plan;
  std::vector<CudaJob> jobs;
  std::vector<CudaRun> runs;
  bool is_bf16 = false;  // products on tensor cores
  int64_t num_rows = 0;  // room for rows in a task: kCudaF32Rows, kCudaFewRows or cuda_rows()
  int32_t staged_key_bytes = 0;  // as in CudaAttend, and what follows
  int32_t staged_value_bytes = 0;
  int32_t direct_bits = 0;

  int64_t shared_bytes(int64_t head_dim) const;  // that the block of a task needs
};

// How work over these runs is cut.
bool is_for_tensor_cores(Precision precision, std::span<const CudaRun> runs);
AttendCut cuda_cut(bool is_bf16, int64_t head_dim);
// Of a call over `runs` whose is_bf16 and plan are there: rows and staging.
void size_call(const AttendShape& shape, std::span<const CudaRun> runs, CudaAttendCall& call);
// Throws std::invalid_argument for more than 8 query heads per KV head, head_dim above 256.
void check_cuda_shape(const AttendShape& shape);

// Describes jobs that attend() has checked, with addresses in the image. To be called twice: before
// the image is placed, to find out what there is, and after. Throws std::invalid_argument for what
// kernels don't read yet: more than 8 query heads per KV head, head_dim above 256.
CudaAttendCall pack_attend(const AttendShape& shape, std::span<const AttendJob> jobs,
                           Precision precision, CudaImage& image);

// The kernels of one call of attention, with addresses of the device.
struct CudaAttendNode {
  CudaAttend call;
  bool is_bf16 = false;
  int64_t num_rows = 0;  // as in CudaAttendCall
  int64_t shared_bytes = 0;
  int64_t num_tasks = 0;
  int64_t num_merges = 0;

  CudaAttendNode() = default;
  CudaAttendNode(const CudaAttendCall& packed, const CudaAttend& launched)
      : call(launched),
        is_bf16(packed.is_bf16),
        num_rows(packed.num_rows),
        shared_bytes(packed.shared_bytes(launched.head_dim)),
        num_tasks(std::ssize(packed.plan.tasks)),
        num_merges(std::ssize(packed.plan.merges)) {}
  bool operator==(const CudaAttendNode&) const = default;
};

// Parameters with the arrays of `packed` itself; partial results are the caller's.
CudaAttend make_call(const AttendShape& shape, const CudaAttendCall& packed,
                     SoftmaxState* partial_states, float* partial_sums);

namespace cuda {
// Of memory of the host, which is copied: for tests and comparisons. Throws DeviceError, also in a
// program without CUDA.
void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision);

// Milliseconds of each of num_runs runs of the kernels, after some to warm up, everything being on
// the device. Results are those of attend().
std::vector<double> time_attend(const AttendShape& shape, std::span<const AttendJob> jobs,
                                Precision precision, int num_runs);
}  // namespace cuda

namespace emulated {
void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision,
            ThreadPool& pool);
}  // namespace emulated

}  // namespace kvquant
