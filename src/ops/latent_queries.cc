#include "ops/latent_queries.h"

#include <algorithm>

#include "formats/kv_block.h"
#include "ops/softmax_state.h"

namespace kvquant {
namespace {

constexpr int64_t kPartQueries = 64;
constexpr float kNoMean[kMaxNuqHeadDim] = {};

// Eight sums at a time, which compilers put into a register.
float dot(const float* a, const float* b, int64_t size) {
  constexpr int64_t kSums = 8;  // head_dim is a multiple
  float sums[kSums] = {};
  for (int64_t i = 0; i < size; i += kSums) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] += a[i + k] * b[i + k];
  }
  float sum = 0;
  for (const float x : sums) sum += x;
  return sum;
}

}  // namespace

const LatentMap* key_latents_of(const AttendJob& job) {
  for (const AttendRun& run : job.runs) {
    if (run.key_latents() != nullptr) return run.key_latents();
  }
  return nullptr;
}

// As many rows as lie evenly apart are projected at once: all heads of a query or a head of all
// queries.
void LatentQueries::project(const AttendShape& shape, const AttendJob& job, const Part& part) {
  LatentMap map = *key_latents_of(job);
  const float* mean = map.mean;
  map.mean = kNoMean;
  map.encode = map.decode;
  const int64_t group = shape.group, dim = shape.head_dim;
  const float* query = job.query + part.first_query * job.query_stride;
  const Place& place = places_[static_cast<size_t>(part.job)];
  float* out = queries_.data() + place.first + part.first_query * place.query_size;
  float* bias = biases_.data() + place.first_row + part.first_query * group;
  for (int64_t i = 0; part.num_queries < group && i < part.num_queries; ++i) {
    encode_latents(map, {.rows = query + i * job.query_stride,
                         .row_stride = dim,
                         .num_rows = group,
                         .latents = out + i * group * map.width,
                         .latent_stride = map.width});
  }
  for (int64_t head = 0; part.num_queries >= group && head < group; ++head) {
    encode_latents(map, {.rows = query + head * dim,
                         .row_stride = job.query_stride,
                         .num_rows = part.num_queries,
                         .latents = out + head * map.width,
                         .latent_stride = group * map.width});
  }
  for (int64_t row = 0; row < part.num_queries * group; ++row) {
    const float* q = query + row / group * job.query_stride + row % group * dim;
    bias[row] = shape.scale * kLog2E * dot(q, mean, dim);
  }
}

void LatentQueries::project(const AttendShape& shape, std::span<const AttendJob> jobs,
                            ThreadPool& pool) {
  group_ = shape.group;
  places_.assign(jobs.size(), {});
  parts_.clear();
  int64_t size = 0, num_rows = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const LatentMap* map = key_latents_of(jobs[i]);
    if (map == nullptr) continue;
    const int64_t count = jobs[i].num_queries;
    places_[i] = {size, shape.group * map->width, num_rows};
    size += count * shape.group * map->width;
    num_rows += count * shape.group;
    for (int64_t first = 0; first < count; first += kPartQueries) {
      parts_.push_back({static_cast<int64_t>(i), first, std::min(kPartQueries, count - first)});
    }
  }
  if (parts_.empty()) return;
  queries_.reserve_discarding(size);
  biases_.reserve_discarding(num_rows);
  pool.parallel_for(static_cast<int64_t>(parts_.size()), [&](int64_t i, int) {
    const Part& part = parts_[static_cast<size_t>(i)];
    project(shape, jobs[static_cast<size_t>(part.job)], part);
  });
}

}  // namespace kvquant
