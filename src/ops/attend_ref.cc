// Scaled dot-product attention as in the paper, two passes over plain loops with sums in double:
// what every other attention kernel is compared with.
//
//   score[j] = scale * <q, k[j]>     p = softmax(score)     out = sum_j p[j] * v[j]
//
// over the keys j that the query sees.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/half.h"
#include "ops/attend_kernels.h"

namespace kvquant::ref {
namespace {

double element(const void* tile, DenseType type, int64_t index) {
  switch (type) {
    case DenseType::kF16: return to_float(static_cast<const Half*>(tile)[index]);
    case DenseType::kBF16: return to_float(static_cast<const BFloat16*>(tile)[index]);
    case DenseType::kF32: return static_cast<const float*>(tile)[index];
  }
  return 0;
}

struct SeenKey {
  const DenseRun* run;
  int64_t token;
  double score;
};

void find_seen_keys(const AttendJob& job, int64_t query, std::vector<SeenKey>& seen) {
  seen.clear();
  for (const DenseRun& run : job.runs) {
    for (int64_t token = 0; token < run.num_tokens; ++token) {
      const int64_t lag = job.first_position + query - (run.first_position + token);
      if (run.min_lag <= lag && lag < run.max_lag) seen.push_back({&run, token, 0});
    }
  }
}

void attend_row(const AttendShape& shape, const float* q, std::vector<SeenKey>& seen, float* out) {
  double max = -std::numeric_limits<double>::infinity();
  for (SeenKey& key : seen) {
    const void* tile = key.run->key_tiles[static_cast<size_t>(key.token / kTileTokens)];
    double dot = 0;
    for (int64_t c = 0; c < shape.head_dim; ++c) {
      dot += double{q[c]} * element(tile, key.run->type, key_index(key.token % kTileTokens, c));
    }
    key.score = shape.scale * dot;
    max = std::max(max, key.score);
  }
  double sum = 0;
  for (SeenKey& key : seen) {
    key.score = std::exp(key.score - max);
    sum += key.score;
  }
  for (int64_t c = 0; c < shape.head_dim; ++c) {
    double mix = 0;
    for (const SeenKey& key : seen) {
      const void* tile = key.run->value_tiles[static_cast<size_t>(key.token / kTileTokens)];
      const int64_t index = value_index(key.token % kTileTokens, c, shape.head_dim);
      mix += key.score / sum * element(tile, key.run->type, index);
    }
    out[c] = static_cast<float>(mix);
  }
}

}  // namespace

void attend_queries(const AttendShape& shape, const AttendJob& job, int64_t first_query,
                    int64_t end_query) noexcept {
  std::vector<SeenKey> seen;
  for (int64_t query = first_query; query < end_query; ++query) {
    find_seen_keys(job, query, seen);
    for (int64_t head = 0; head < shape.group; ++head) {
      const int64_t offset = query * job.query_stride + head * shape.head_dim;
      attend_row(shape, job.query + offset, seen, job.out + offset);
    }
  }
}

}  // namespace kvquant::ref
