#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "ops/attend_cuda.h"
#include "ops/attend_cuda_direct_shared.h"
#include "ops/attend_cuda_shared.h"

namespace kvquant {
namespace {

template <class T>
const T* address_of(CudaImage& image, const T* host, int64_t size) {
  if (host == nullptr || size == 0) return nullptr;
  return static_cast<const T*>(image.address(host, size * static_cast<int64_t>(sizeof(T))));
}

template <class T>
const T* const* list_of(CudaImage& image, std::span<T* const> items, int64_t item_bytes) {
  static_assert(sizeof(T*) == sizeof(void*));
  const auto* first = reinterpret_cast<const void* const*>(items.data());
  return reinterpret_cast<const T* const*>(image.list({first, items.size()}, item_bytes));
}

CudaSide coded_side(const CodedSide& side, CudaImage& image) {
  CudaSide out;
  out.source = TileSource::kCoded;
  out.codebook = address_of(image, side.codebook, 1);
  out.shape = side.shape;
  out.layout = side.layout;
  out.head = side.head;
  out.blocks = list_of(image, side.blocks, side.layout.num_bytes);
  out.num_segment_starts = std::ssize(side.segment_starts);
  out.segment_starts = address_of(image, side.segment_starts.data(), out.num_segment_starts);
  out.segment_stride = side.segment_stride;
  const int64_t num_params = side.segment_stride * out.num_segment_starts + side.shape.head_dim;
  out.scales = address_of(image, side.scales, num_params);
  out.zeros = address_of(image, side.zeros, num_params);
  out.pages = list_of(image, side.pages, sizeof(OutlierPage));
  out.hadamard = side.hadamard;
  out.logit_bias = side.logit_bias;
  return out;
}

CudaSide dense_side(const AttendRun& run, std::span<const void* const> tiles, int64_t head_dim,
                    CudaImage& image) {
  CudaSide out;
  out.type = run.type;
  out.pieces = image.list(tiles, kTileTokens * head_dim * element_bytes(run.type));
  return out;
}

CudaSide row_side(const AttendRun& run, const Half* rows, int64_t head_dim, CudaImage& image) {
  CudaSide out;
  out.source = TileSource::kRows;
  const int64_t size = run.num_tokens == 0 ? 0 : (run.num_tokens - 1) * run.row_stride + head_dim;
  out.rows = address_of(image, rows, size);
  out.row_stride = run.row_stride;
  return out;
}

CudaRun pack_run(const AttendRun& run, int64_t head_dim, CudaImage& image) {
  CudaRun out;
  out.window = window_of(run);
  out.kind = run.is_low_rank() ? ValueKind::kLatents : ValueKind::kPlain;
  const auto side = [&](const CodedSide* coded, const Half* rows,
                        std::span<const void* const> tiles) {
    if (coded != nullptr) return coded_side(*coded, image);
    return rows != nullptr ? row_side(run, rows, head_dim, image)
                           : dense_side(run, tiles, head_dim, image);
  };
  out.keys = side(run.coded_keys, run.key_rows, run.key_tiles);
  out.values = side(run.coded_values, run.value_rows, run.value_tiles);
  out.keys.offset = run.key_offset;
  out.values.offset = run.value_offset;
  if (out.is_turned() && run.num_tokens > 0) {
    const int64_t half = head_dim / 2;
    // The table grows to the last tile's middle before the first row is asked for.
    const int64_t last = (run.num_tokens - 1) / kTileTokens * kTileTokens + RopeTiles::kMiddle;
    run.rope->cos(run.first_position + last);
    out.cos = address_of(image, run.rope->cos(run.first_position), (last + 1) * half);
    out.sin = address_of(image, run.rope->sin(run.first_position), (last + 1) * half);
    out.tile_cos = address_of(image, run.rope->tiles().tile_cos, half * kTileTokens);
    out.tile_sin = address_of(image, run.rope->tiles().tile_sin, half * kTileTokens);
  }
  return out;
}

CudaJob pack_job(const AttendShape& shape, const AttendJob& job, CudaImage& image) {
  const HostRows rows{job.num_queries, shape.group * shape.head_dim, job.query_stride};
  CudaJob out;
  out.query = image.input_rows(job.query, rows);
  out.out = image.output_rows(job.out, rows);
  out.query_stride = rows.size;
  out.out_stride = rows.size;
  out.first_position = job.first_position;
  const auto pack = [&](const LatentMap& map) {
    return CudaLatents{map.rank, map.width, address_of(image, map.mean, map.head_dim),
                       address_of(image, map.decode, map.rank * map.head_dim)};
  };
  for (const AttendRun& run : job.runs) {
    if (run.latents() != nullptr) out.latents = pack(*run.latents());
    if (run.key_latents() != nullptr) out.key_latents = pack(*run.key_latents());
  }
  if (job.latent_sums.width == 0) return out;
  const HostRows sums{job.num_queries, shape.group * job.latent_sums.width, job.latent_sums.stride};
  out.latent_sums = image.output_rows(job.latent_sums.data, sums);
  out.latent_stride = sums.size;
  out.latent_width = job.latent_sums.width;
  return out;
}

// Room for the largest tile of codes of either side, if there is any.
void stage(int64_t head_dim, std::span<const CudaRun> runs, CudaAttendCall& call) {
  int64_t keys = 0, values = 0;
  const auto grow = [](const CudaSide& side, int64_t& room) {
    const bool has_codes = side.source == TileSource::kCoded && side.shape.has_codes();
    if (has_codes) room = std::max(room, side.layout.code_tile);
  };
  for (const CudaRun& run : runs) {
    grow(run.keys, keys);
    grow(run.values, values);
  }
  if (call.shared_bytes(head_dim) + keys + values > kMostSharedBytes) return;
  call.staged_key_bytes = static_cast<int32_t>(keys);
  call.staged_value_bytes = static_cast<int32_t>(values);
}

// Of the widest codes, if tasks are small and there is a kernel.
int32_t find_direct_bits(int64_t head_dim, std::span<const CudaRun> runs,
                         const CudaAttendCall& call) {
  const bool is_small = call.plan.max_rows <= kDirectRows && call.plan.max_tiles <= kSpanTiles;
  if (!call.is_bf16 || !is_small || !has_direct_kernel(head_dim)) return 0;
  int bits = 0;
  for (const CudaRun& run : runs) {
    if (is_direct(run)) bits = std::max({bits, run.keys.shape.bits, run.values.shape.bits});
  }
  return bits;
}

}  // namespace

void check_cuda_shape(const AttendShape& shape) {
  check_arg(shape.group <= kCudaF32Rows,
            fmt::format("attend: CUDA kernels take up to {} query heads per KV head, not {}",
                        kCudaF32Rows, shape.group));
  check_arg(shape.head_dim <= kMaxNuqHeadDim,
            fmt::format("attend: CUDA kernels take head_dim up to {}, not {}", kMaxNuqHeadDim,
                        shape.head_dim));
}

// Values that are rotated are rotated back in shared memory, for which bf16 is too coarse.
bool is_for_tensor_cores(Precision precision, std::span<const CudaRun> runs) {
  return precision == Precision::kBF16 &&
         std::none_of(runs.begin(), runs.end(), [](const auto& x) { return x.values.hadamard; });
}

AttendCut cuda_cut(bool is_bf16, int64_t head_dim) {
  const int64_t most = is_bf16 ? cuda_rows(head_dim) : kCudaF32Rows;
  return {.block_rows = most, .split_rows = most};
}

void size_call(const AttendShape& shape, std::span<const CudaRun> runs, CudaAttendCall& call) {
  const int64_t most = cuda_cut(call.is_bf16, shape.head_dim).block_rows;
  call.num_rows = call.is_bf16 && call.plan.max_rows <= kCudaFewRows ? kCudaFewRows : most;
  call.staged_key_bytes = call.staged_value_bytes = 0;
  call.direct_bits = find_direct_bits(shape.head_dim, runs, call);
  if (call.direct_bits == 0) stage(shape.head_dim, runs, call);
}

CudaAttendCall pack_attend(const AttendShape& shape, std::span<const AttendJob> jobs,
                           Precision precision, CudaImage& image) {
  check_cuda_shape(shape);
  CudaAttendCall call;
  for (const AttendJob& job : jobs) {
    CudaJob packed = pack_job(shape, job, image);
    packed.first_run = std::ssize(call.runs);
    packed.num_runs = std::ssize(job.runs);
    call.jobs.push_back(packed);
    for (const AttendRun& run : job.runs) {
      call.runs.push_back(pack_run(run, shape.head_dim, image));
    }
  }
  call.is_bf16 = is_for_tensor_cores(precision, call.runs);
  plan_attend(shape.group, cuda_cut(call.is_bf16, shape.head_dim), jobs, call.plan);
  size_call(shape, call.runs, call);
  return call;
}

int64_t CudaAttendCall::shared_bytes(int64_t head_dim) const {
  const int64_t pair_bytes = is_bf16 ? sizeof(Bf16Pair) : sizeof(FloatPair);
  const int64_t num_bytes =
      attend_shared_layout(head_dim, num_rows, pair_bytes, !is_bf16).num_bytes + staged_key_bytes +
      staged_value_bytes;
  if (direct_bits == 0) return num_bytes;
  const DirectLayout direct = direct_layout(head_dim, direct_bits);
  return std::max(direct.num_bytes, direct.rest + num_bytes);
}

CudaAttend make_call(const AttendShape& shape, const CudaAttendCall& packed,
                     SoftmaxState* partial_states, float* partial_sums) {
  CudaAttend call;
  call.head_dim = static_cast<int32_t>(shape.head_dim);
  call.group = static_cast<int32_t>(shape.group);
  call.log2_scale = shape.scale * kLog2E;
  call.staged_key_bytes = packed.staged_key_bytes;
  call.staged_value_bytes = packed.staged_value_bytes;
  call.direct_bits = packed.direct_bits;
  call.jobs = packed.jobs.data();
  call.runs = packed.runs.data();
  call.tasks = packed.plan.tasks.data();
  call.merges = packed.plan.merges.data();
  call.partial_states = partial_states;
  call.partial_sums = partial_sums;
  return call;
}

}  // namespace kvquant
