#include "ops/attend.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/buffer.h"
#include "base/check.h"
#include "ops/attend_amxbf16.h"
#include "ops/attend_cuda.h"
#include "ops/attend_kernels.h"
#include "ops/attend_plan.h"
#include "ops/latent_queries.h"
#include "ops/softmax_state.h"

namespace kvquant {
namespace {

void check_latents(const CodedSide& side, const AttendShape& shape) {
  const LatentMap& map = *side.latents;
  check_arg(map.head_dim == shape.head_dim && 0 < map.rank && map.rank <= map.head_dim &&
                map.width == latent_width(map.rank) && side.shape.head_dim == map.width,
            "attend: latents must have a rank of at most head_dim and blocks of its width");
  check_arg(!side.hadamard, "attend: latents can't be rotated: their map is to do it");
  check_arg(side.shape.has_codes() || !side.shape.has_outliers,
            "attend: latents of fp16 can't have outliers");
}

bool bands_fit(const KvBlockShape& shape) {
  if (!shape.bands.is_banded()) return true;
  return shape.has_latents && shape.bits == kByteCodeBits && !shape.has_outliers &&
         shape.bands.num_channels() == shape.head_dim;
}

void check_side(const CodedSide& side, KvSide expected, const AttendShape& shape,
                int64_t num_tiles) {
  if (side.latents != nullptr) expected = KvSide::kValue;  // where their codes lie like those of
  const bool is_half = side.latents != nullptr && !side.shape.has_codes();
  check_arg(is_half || (side.codebook != nullptr && side.codebook->bits == side.shape.bits),
            "attend: a coded side must have the codebook of its bits");
  check_arg(side.shape.side == expected && side.shape.has_latents == (side.latents != nullptr) &&
                (side.latents != nullptr || side.shape.head_dim == shape.head_dim),
            "attend: a coded side must have the queries' head_dim and its own kind of block");
  check_arg((is_half || is_code_width(side.shape.bits)) && shape.head_dim <= kMaxNuqHeadDim,
            "attend: codes have 2, 3, 4 or 8 bits, and head_dim is at most 256");
  if (side.latents != nullptr) check_latents(side, shape);
  check_arg(bands_fit(side.shape), "attend: bands must be of latents and have all their channels");
  check_arg(!side.hadamard || std::has_single_bit(static_cast<uint64_t>(shape.head_dim)),
            "attend: values can be rotated only when head_dim is a power of two");
  check_arg(0 <= side.head && side.head < side.shape.num_kv_heads && side.shape.num_tiles > 0,
            "attend: a coded side's head is out of range");
  check_arg(static_cast<int64_t>(side.blocks.size()) * side.shape.num_tiles >= num_tiles,
            "attend: a coded side must have a block for each of its tiles");
  check_arg(expected == KvSide::kValue || (side.scales != nullptr && side.zeros != nullptr),
            "attend: coded keys must have scales and zero points");
}

void check_latent_keys(const AttendRun& run, const AttendShape& shape, int64_t num_tiles) {
  check_side(*run.coded_keys, KvSide::kKey, shape, num_tiles);
  const bool has_codes = run.coded_values != nullptr;
  if (has_codes) check_side(*run.coded_values, KvSide::kValue, shape, num_tiles);
  const int64_t num_values = run.num_tokens == 0 ? 0 : run.value_offset + run.num_tokens;
  const int64_t expected = has_codes ? 0 : (num_values + kTileTokens - 1) / kTileTokens;
  check_arg(run.key_tiles.empty() && std::ssize(run.value_tiles) == expected,
            "attend: a run of latents of keys must have coded values or a value tile for each 64 "
            "tokens, and no key tiles");
}

void check_run(const AttendRun& run, const AttendShape& shape) {
  check_arg(run.num_tokens >= 0, "attend: a run's num_tokens must not be negative");
  const int64_t num_tiles = (run.num_tokens + kTileTokens - 1) / kTileTokens;
  check_arg(!run.is_coded() || !run.is_rows(), "attend: a run is coded or rows, not both");
  check_arg(run.first_position >= 0 && run.first_position <= kMaxPosition - run.num_tokens,
            "attend: a run's positions must be in [0, 2^60]");
  check_arg(run.key_offset >= 0 && run.key_offset < kTileTokens &&
                (run.key_offset == 0 || run.is_half_coded()),
            "attend: only dense keys of coded values may have an offset, of 0 to 63 tokens");
  check_arg(
      run.value_offset >= 0 && run.value_offset < kTileTokens &&
          (run.value_offset == 0 || (run.key_latents() != nullptr && run.coded_values == nullptr)),
      "attend: only dense values beside latents of keys may have an offset, of 0 to 63 "
      "tokens");
  if (run.key_latents() != nullptr) return check_latent_keys(run, shape, num_tiles);
  if (run.is_half_coded()) {
    check_side(*run.coded_values, KvSide::kValue, shape, num_tiles);
    const int64_t num_keys = run.num_tokens == 0 ? 0 : run.key_offset + run.num_tokens;
    const auto expected = static_cast<size_t>((num_keys + kTileTokens - 1) / kTileTokens);
    return check_arg(run.key_tiles.size() == expected && !run.is_rows(),
                     "attend: a run of coded values must have a key tile for each 64 tokens");
  }
  if (run.is_coded()) {
    check_arg(run.coded_values != nullptr, "attend: both sides of a run must be coded");
    check_side(*run.coded_keys, KvSide::kKey, shape, num_tiles);
    check_side(*run.coded_values, KvSide::kValue, shape, num_tiles);
  } else if (run.is_rows()) {
    check_arg(run.value_rows != nullptr && run.row_stride >= shape.head_dim &&
                  shape.head_dim <= kMaxNuqHeadDim,
              "attend: rows must have keys and values of at most 256 channels, at least head_dim "
              "apart");
  } else {
    const auto expected = static_cast<size_t>(num_tiles);
    return check_arg(run.key_tiles.size() == expected && run.value_tiles.size() == expected,
                     "attend: a run must have a key tile and a value tile for each 64 tokens");
  }
  check_arg(run.rope != nullptr && run.rope->head_dim() == shape.head_dim &&
                run.first_position + run.num_tokens <= run.rope->num_positions(),
            "attend: positions of codes and rows must be in the run's RoPE table");
}

void check_job(const AttendShape& shape, const AttendJob& job) {
  check_arg(job.num_queries >= 0, "attend: num_queries must not be negative");
  check_arg(job.num_queries == 0 || (job.query != nullptr && job.out != nullptr),
            "attend: query and out must not be null");
  check_arg(job.num_queries <= 1 || job.query_stride >= shape.group * shape.head_dim,
            "attend: query_stride must be at least group * head_dim");
  check_arg(job.first_position >= 0 && job.first_position <= kMaxPosition - job.num_queries,
            "attend: positions of queries must be in [0, 2^60]");
  const LatentSums& sums = job.latent_sums;
  check_arg(sums.width == 0 || (0 < sums.width && sums.width <= kMaxNuqHeadDim &&
                                (job.num_queries == 0 || sums.data != nullptr) &&
                                (job.num_queries <= 1 || sums.stride >= shape.group * sums.width)),
            "attend: sums of latents must have a width of at most 256, an array and a stride of at "
            "least group * width");
  const AttendRun* first = nullptr;  // with latents
  for (const AttendRun& run : job.runs) {
    check_run(run, shape);
    if (!run.is_low_rank()) continue;
    if (first == nullptr) first = &run;
    check_arg(run.latents() == first->latents() && run.key_latents() == first->key_latents(),
              "attend: all latents of a job must be of the same sides and have the same map");
    check_arg(sums.width == 0 || run.latents() == nullptr || sums.width == run.latents()->width,
              "attend: sums of latents must have the width of their map");
  }
}

void check_shape(const AttendShape& shape) {
  check_arg(shape.head_dim > 0 && shape.head_dim % 8 == 0 && shape.head_dim <= (1 << 16),
            "attend: head_dim must be a positive multiple of 8");
  check_arg(shape.group > 0 && shape.group <= (1 << 16), "attend: group must be positive");
  check_arg(std::isfinite(shape.scale) && shape.scale > 0, "attend: scale must be positive");
}

int64_t padded_dim(const AttendShape& shape) { return (shape.head_dim + 15) / 16 * 16; }

// Memory that a calling thread keeps from call to call, so that a decode step allocates nothing.
// It grows to the largest need. Workers use slices of it.
struct AttendScratch {
  AttendPlan plan;
  Buffer<std::byte> workspaces;
  Buffer<float> partial_acc;  // [num_partial_rows, padded_dim]
  Buffer<SoftmaxState> partial_states;
  LatentQueries latent_queries;
};

// Takes consecutive 64-byte aligned arrays from a slice of memory, or counts what they need.
class Slicer {
 public:
  explicit Slicer(std::byte* data) : data_(data) {}
  template <class T>
  T* take(int64_t size) {
    auto* result = data_ == nullptr ? nullptr : reinterpret_cast<T*>(data_ + used_);
    used_ += (size * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return result;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* data_;
  int64_t used_ = 0;
};

AttendWorkspace slice_workspace(Slicer& slicer, const AttendPlan& plan, int64_t dim) {
  AttendWorkspace workspace;
  workspace.tiles = slicer.take<TileWork>(plan.max_tiles + kAheadTiles);
  workspace.query = slicer.take<float>((plan.max_rows + amxbf16::kHalfRows) * dim);
  workspace.keys = slicer.take<float>(kTileTokens * dim);
  workspace.values = slicer.take<float>(kTileTokens * dim);
  workspace.planar = slicer.take<float>(3 * kTileTokens * dim);
  workspace.biases = slicer.take<float>(plan.max_rows);
  workspace.sums = slicer.take<float>(plan.max_rows * 16);
  workspace.pairs = slicer.take<float>(plan.max_rows * 2 * dim);
  workspace.acc = slicer.take<float>(plan.max_rows * dim);
  workspace.states = slicer.take<SoftmaxState>(plan.max_rows);
  return workspace;
}

struct Call {
  const AttendShape& shape;
  std::span<const AttendJob> jobs;
  bool has_bf16_dots;
  bool has_amx;
  AttendScratch& scratch;
  int64_t workspace_bytes;

  const AttendJob& job(int64_t index) const { return jobs[static_cast<size_t>(index)]; }
};

// A single row waits for memory anyway: dense tiles that are not bf16 are then read exactly, by the
// f32 kernel (Zen 4, one core: 29.6 GB/s of f16 tiles against 31.3 with bf16 products), unless
// there are codes or rows.
AttendKernel choose_kernel(const Call& call, const AttendJob& job, const AttendBlock& block) {
  if (!call.has_bf16_dots) return simd::attend_block;
  if (block.has_latents) {  // fp16 ones beside codes only the f32 kernel reads
    const bool has_mixed = std::any_of(job.runs.begin(), job.runs.end(), [](const AttendRun& run) {
      return run.latents() != nullptr && run.is_coded() && run.key_latents() == nullptr &&
             !run.coded_values->shape.has_codes();
    });
    return has_mixed ? simd::attend_block : avx512bf16::attend_block;
  }
  const bool has_raw = std::any_of(job.runs.begin(), job.runs.end(), [](const AttendRun& run) {
    return run.coded_values != nullptr || run.is_rows();
  });
  const bool all_bf16 = std::all_of(job.runs.begin(), job.runs.end(), [](const AttendRun& run) {
    return run.type == DenseType::kBF16;
  });
  return !has_few_rows(block, 1) || has_raw || all_bf16 ? avx512bf16::attend_block
                                                        : simd::attend_block;
}

void write_row(const float* acc, const SoftmaxState& state, int64_t head_dim, float* out) {
  const float factor = normaliser(state);
  for (int64_t c = 0; c < head_dim; ++c) out[c] = acc[c] * factor;
}

float* out_row(const AttendShape& shape, const AttendJob& job, int64_t first_query, int64_t row) {
  return job.out + (first_query + row / shape.group) * job.query_stride +
         row % shape.group * shape.head_dim;
}

// Of job.latent_sums; nothing may be written there when they have no width.
float* latent_row(const AttendShape& shape, const AttendJob& job, int64_t first_query,
                  int64_t row) {
  const LatentSums& sums = job.latent_sums;
  return sums.data + (first_query + row / shape.group) * sums.stride +
         row % shape.group * sums.width;
}

const LatentMap* latents_of(const AttendJob& job) {
  const LatentMap* latents = nullptr;
  for (const AttendRun& run : job.runs)
    latents = run.latents() != nullptr ? run.latents() : latents;
  return latents;
}

// Queries, and sizes of what they meet.
void describe_rows(const Call& call, const AttendTask& task, AttendBlock& block) {
  const AttendJob& job = call.job(task.job);
  block.head_dim = block.value_dim = call.shape.head_dim;
  block.has_latents = task.values == ValueKind::kLatents;
  block.query = job.query + task.first_query * job.query_stride;
  block.query_stride = job.query_stride;
  block.num_rows = task.num_queries * call.shape.group;
  if (!block.has_latents) return;
  if (const LatentMap* values = latents_of(job)) block.value_dim = values->width;
  const LatentMap* keys = key_latents_of(job);
  if (keys == nullptr) return;
  block.head_dim = keys->width;
  block.query = call.scratch.latent_queries.queries(task.job, task.first_query);
  block.query_stride = call.shape.group * keys->width;
  block.key_biases = call.scratch.latent_queries.biases(task.job, task.first_query);
}

// next: the task that the worker will probably run after this one, or null.
void run_task(const Call& call, const AttendTask& task, const AttendTask* next, int worker) {
  const AttendShape& shape = call.shape;
  const AttendJob& job = call.job(task.job);
  AttendScratch& scratch = call.scratch;
  Slicer slicer(scratch.workspaces.data() + worker * call.workspace_bytes);
  AttendBlock block;
  describe_rows(call, task, block);
  block.padded_dim = padded_dim(shape);
  block.has_amx = call.has_amx && amxbf16::can_attend(block, job.num_queries * shape.group);
  block.group = shape.group;
  block.log2_scale = shape.scale * kLog2E;
  block.workspace = slice_workspace(slicer, scratch.plan, block.padded_dim);
  block.tiles = block.workspace.tiles;
  block.num_tiles = task.num_tiles;
  const bool final = task.partial_row < 0;
  block.states = final ? block.workspace.states : &scratch.partial_states[task.partial_row];
  block.acc =
      final ? block.workspace.acc : &scratch.partial_acc[task.partial_row * block.padded_dim];
  if (next != nullptr) prefetch_lists(call.job(next->job), *next);
  list_tiles(job, task, block.workspace.tiles);
  if (next != nullptr) {
    AttendTask ahead = *next;
    ahead.num_tiles = block.num_ahead = std::min(ahead.num_tiles, kAheadTiles);
    list_tiles(call.job(ahead.job), ahead, block.workspace.tiles + task.num_tiles);
  }
  choose_kernel(call, job, block)(block);
  for (int64_t row = 0; final && row < block.num_rows; ++row) {
    write_row(block.acc + row * block.padded_dim, block.states[row], shape.head_dim,
              out_row(shape, job, task.first_query, row));
    std::fill_n(latent_row(shape, job, task.first_query, row), job.latent_sums.width, 0.0f);
  }
}

// Parts [begin, end) of one row, in their order: their sums into out [dim], and their state.
SoftmaxState merge_parts(const Call& call, const AttendMerge& merged, int64_t row, TokenRange parts,
                         int64_t dim, float* out) {
  const int64_t num_rows = merged.num_queries * call.shape.group;
  std::fill_n(out, dim, 0.0f);
  SoftmaxState state;
  for (int64_t part = parts.begin; part < parts.end; ++part) {
    const int64_t index = merged.first_partial_row + part * num_rows + row;
    const float* acc = call.scratch.partial_acc.data() + index * padded_dim(call.shape);
    const auto [keep, add] = merge(state, call.scratch.partial_states[index]);
    for (int64_t c = 0; c < dim; ++c) out[c] = out[c] * keep + acc[c] * add;
  }
  return state;
}

void run_merge(const Call& call, const AttendMerge& merged) {
  const AttendShape& shape = call.shape;
  const AttendJob& job = call.job(merged.job);
  const LatentMap* map = merged.num_latent_parts == 0 ? nullptr : latents_of(job);
  const int64_t kept = job.latent_sums.width;  // latents that are not expanded
  const auto end = static_cast<int32_t>(merged.num_parts);
  const auto num_plain =  // parts that sum values as they are
      map == nullptr ? end : static_cast<int32_t>(merged.num_parts - merged.num_latent_parts);
  for (int64_t row = 0; row < merged.num_queries * shape.group; ++row) {
    float* out = out_row(shape, job, merged.first_query, row);
    SoftmaxState state = merge_parts(call, merged, row, {0, num_plain}, shape.head_dim, out);
    float latents[kMaxNuqHeadDim];
    if (map != nullptr) {
      const SoftmaxState other =
          merge_parts(call, merged, row, {num_plain, end}, map->width, latents);
      const auto [keep, add] = merge(state, other);
      for (int64_t c = 0; c < shape.head_dim; ++c) out[c] *= keep;
      if (kept > 0) {
        for (int64_t c = 0; c < shape.head_dim; ++c) out[c] += add * other.sum * map->mean[c];
        for (int64_t r = 0; r < kept; ++r) latents[r] *= add;
      } else if (add > 0) {
        expand_latents(*map, latents, other.sum, add, out);
      }
    } else {
      std::fill_n(latents, kept, 0.0f);
    }
    write_row(out, state, shape.head_dim, out);
    write_row(latents, state, kept, latent_row(shape, job, merged.first_query, row));
  }
}

// With fewer products than this, merging takes less time than waking workers (Zen 4: about 1 us).
constexpr int64_t kMergeAlone = 1 << 14;

void run_merges(const Call& call, ThreadPool& pool) {
  const auto& merges = call.scratch.plan.merges;
  const auto run = [&](int64_t i, int) { run_merge(call, merges[static_cast<size_t>(i)]); };
  const auto count = static_cast<int64_t>(merges.size());
  const bool expands = std::any_of(merges.begin(), merges.end(), [](const AttendMerge& merged) {
    return merged.num_latent_parts > 0;
  });
  if (expands || call.scratch.plan.num_partial_rows * call.shape.head_dim > kMergeAlone) {
    return pool.parallel_for(count, run);
  }
  for (int64_t i = 0; i < count; ++i) run(i, 0);
}

// Whether there are two blocks of kAmxBlockRows for each thread.
bool has_blocks_for_all(int64_t group, std::span<const AttendJob> jobs, const ThreadPool& pool) {
  int64_t num_blocks = 0;
  for (const AttendJob& job : jobs) {
    num_blocks += (job.num_queries * group + kAmxBlockRows - 1) / kAmxBlockRows;
  }
  return num_blocks >= 2 * pool.num_threads();
}

void attend_reference(const AttendShape& shape, std::span<const AttendJob> jobs, ThreadPool& pool) {
  for (const AttendJob& job : jobs) {
    pool.parallel_for(job.num_queries, [&](int64_t query, int) {
      ref::attend_queries(shape, job, query, query + 1);
    });
  }
}

}  // namespace

void attend(const AttendShape& shape, std::span<const AttendJob> jobs, Precision precision,
            ThreadPool& pool, Backend backend) {
  check_shape(shape);
  for (const AttendJob& job : jobs) check_job(shape, job);
  if (backend == Backend::kReference) return attend_reference(shape, jobs, pool);
  if (backend == Backend::kCudaEmulated) return emulated::attend(shape, jobs, precision, pool);
  if (backend == Backend::kCuda) return cuda::attend(shape, jobs, precision);

  static thread_local AttendScratch scratch;
  const bool is_bf16 = precision == Precision::kBF16;
  const bool has_amx = is_bf16 && backend == Backend::kAmxBf16;
  const int64_t block_rows =
      has_amx && has_blocks_for_all(shape.group, jobs, pool) ? kAmxBlockRows : kBlockRows;
  plan_attend(shape.group, {.block_rows = block_rows}, jobs, scratch.plan);
  Slicer counter(nullptr);
  slice_workspace(counter, scratch.plan, padded_dim(shape));
  const Call call{shape, jobs, is_bf16 && has_bf16_dots(backend), has_amx, scratch, counter.used()};
  scratch.workspaces.reserve_discarding(call.workspace_bytes * pool.num_threads());
  scratch.partial_acc.reserve_discarding(scratch.plan.num_partial_rows * padded_dim(shape));
  scratch.partial_states.reserve_discarding(scratch.plan.num_partial_rows);
  scratch.latent_queries.project(shape, jobs, pool);

  const AttendPlan& plan = scratch.plan;
  pool.parallel_for(static_cast<int64_t>(plan.tasks.size()), [&](int64_t i, int worker) {
    const auto next = static_cast<size_t>(i + pool.num_threads());
    run_task(call, plan.tasks[static_cast<size_t>(i)],
             next < plan.tasks.size() ? &plan.tasks[next] : nullptr, worker);
  });
  run_merges(call, pool);
}

}  // namespace kvquant
