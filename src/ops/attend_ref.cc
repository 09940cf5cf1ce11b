// Scaled dot-product attention as in the paper, two passes over plain loops with sums in double:
// what every other attention kernel is compared with.
//
//   score[j] = scale * <q, k[j]>     p = softmax(score)     out = sum_j p[j] * v[j]
//
// over the keys j that the query sees; scores of coded keys are biased, see CodedSide::logit_bias.
// Latents of values are summed as they are and expanded at the end (latent.h); of keys
//
//   <q, k[j]> = <q, mean> + sum_r <q, D[r]> z[j][r]
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/half.h"
#include "base/walsh_hadamard.h"
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
  const AttendRun* run;
  int64_t token;
  double score;
};

// A query as keys that are latents need it.
struct LatentQuery {
  double of_mean = 0;
  std::vector<double> components;  // [rank]
};

LatentQuery latent_query(const AttendJob& job, const float* q) {
  LatentQuery out;
  for (const AttendRun& run : job.runs) {
    const LatentMap* map = run.key_latents();
    if (map == nullptr) continue;
    out = {};
    for (int64_t c = 0; c < map->head_dim; ++c) out.of_mean += double{q[c]} * map->mean[c];
    for (int64_t r = 0; r < map->rank; ++r) {
      double dot = 0;
      for (int64_t c = 0; c < map->head_dim; ++c) {
        dot += double{q[c]} * map->decode[r * map->head_dim + c];
      }
      out.components.push_back(dot);
    }
  }
  return out;
}

void find_seen_keys(const AttendJob& job, int64_t query, std::vector<SeenKey>& seen) {
  seen.clear();
  for (const AttendRun& run : job.runs) {
    for (int64_t token = 0; token < run.num_tokens; ++token) {
      const int64_t lag = job.first_position + query - (run.first_position + token);
      if (run.min_lag <= lag && lag < run.max_lag) seen.push_back({&run, token, 0});
    }
  }
}

// What a code stands for, or the outlier in its place.
double coded_element(const CodedSide& side, int64_t token, int64_t channel) {
  const int64_t tile = token / kTileTokens, in_tile = token % kTileTokens;
  const std::byte* block = side.blocks[static_cast<size_t>(tile / side.shape.num_tiles)];
  const int64_t index = tile % side.shape.num_tiles;
  const int64_t of_head = index * side.shape.num_kv_heads + side.head;
  if (side.shape.has_outliers) {
    const auto* starts = reinterpret_cast<const uint32_t*>(block + side.layout.starts);
    const auto* counts = reinterpret_cast<const uint16_t*>(block + side.layout.counts);
    for (int64_t e = starts[of_head]; e < int64_t{starts[of_head]} + counts[of_head]; ++e) {
      const OutlierPage& page = *side.pages[static_cast<size_t>(e / kOutliersPerPage)];
      const OutlierEntry& entry = page.entries[e % kOutliersPerPage];
      if (entry.place == outlier_place(in_tile, channel)) return to_float(entry.value);
    }
  }
  const bool is_key = side.shape.side == KvSide::kKey;
  const auto* codes = reinterpret_cast<const uint8_t*>(block) + side.layout.codes(side.head, index);
  if (!side.shape.has_codes()) {
    return element(codes, DenseType::kF16, value_index(in_tile, channel, side.shape.head_dim));
  }
  const CodePlace place = code_place(side.shape.side, side.shape.head_dim, in_tile, channel);
  const int code = side.shape.bands.is_banded()
                       ? band_code_at(codes, side.shape.bands, in_tile, channel)
                       : code_at(codes, side.shape.bits, place);
  const int64_t of_token = side.shape.token_params(index, side.head) + in_tile;
  const int64_t of_segment = is_key ? side.segment_offset(tile) + channel : 0;
  const Half scale = is_key ? side.scales[of_segment]
                            : reinterpret_cast<const Half*>(block + side.layout.scales)[of_token];
  const Half zero = is_key ? side.zeros[of_segment]
                           : reinterpret_cast<const Half*>(block + side.layout.zeros)[of_token];
  return double{level_of(*side.codebook, code)} * to_float(scale) + to_float(zero);
}

// Of a key before RoPE.
double raw_key_element(const AttendRun& run, int64_t token, int64_t channel) {
  if (run.is_rows()) return to_float(run.key_rows[token * run.row_stride + channel]);
  return coded_element(*run.coded_keys, token, channel);
}

double raw_score(const AttendRun& run, int64_t token, const float* q) {
  const int64_t half = run.rope->head_dim() / 2;
  const float* cos = run.rope->cos(run.first_position + token);
  const float* sin = run.rope->sin(run.first_position + token);
  double dot = 0;
  for (int64_t c = 0; c < half; ++c) {
    const double a = raw_key_element(run, token, c);
    const double b = raw_key_element(run, token, c + half);
    dot += q[c] * (a * cos[c] - b * sin[c]) + q[c + half] * (b * cos[c] + a * sin[c]);
  }
  return dot;
}

// See CodedSide::logit_bias.
double logit_bias(const CodedSide& keys, int64_t token, float scale, const float* q) {
  const Half* scales = keys.scales + keys.segment_offset(token / kTileTokens);
  const int64_t half = keys.shape.head_dim / 2;
  const auto sum_squares = [](double a, double b) { return a * a + b * b; };
  double sum = 0;
  for (int64_t c = 0; c < half; ++c) {
    sum += sum_squares(q[c], q[c + half]) *
           sum_squares(to_float(scales[c]), to_float(scales[c + half])) / 2;
  }
  return keys.logit_bias * (double{scale} * scale * keys.codebook->noise * sum) / 2;
}

double latent_score(const AttendRun& run, int64_t token, const LatentQuery& query) {
  const CodedSide& keys = *run.coded_keys;
  const int64_t tile = token / kTileTokens, index = tile % keys.shape.num_tiles;
  const std::byte* halves = keys.blocks[static_cast<size_t>(tile / keys.shape.num_tiles)] +
                            keys.layout.codes(keys.head, index);
  double dot = query.of_mean;
  for (size_t r = 0; r < query.components.size(); ++r) {
    const auto channel = static_cast<int64_t>(r);
    const double z = keys.shape.has_codes() ? coded_element(keys, token, channel)
                                            : element(halves, DenseType::kF16,
                                                      key_index(token % kTileTokens, channel));
    dot += query.components[r] * z;
  }
  return dot;
}

double dense_score(const AttendRun& run, int64_t token, std::span<const float> q) {
  const int64_t slot = run.key_offset + token;
  const void* tile = run.key_tiles[static_cast<size_t>(slot / kTileTokens)];
  double dot = 0;
  for (size_t c = 0; c < q.size(); ++c) {
    const int64_t index = key_index(slot % kTileTokens, static_cast<int64_t>(c));
    dot += double{q[c]} * element(tile, run.type, index);
  }
  return dot;
}

double dense_value(const AttendRun& run, int64_t token, int64_t channel, int64_t head_dim) {
  if (run.is_rows()) return to_float(run.value_rows[token * run.row_stride + channel]);
  const int64_t slot = run.value_offset + token;
  const void* tile = run.value_tiles[static_cast<size_t>(slot / kTileTokens)];
  return element(tile, run.type, value_index(slot % kTileTokens, channel, head_dim));
}

// Weighted sums of a row: of values, and of latents, which are expanded at the end.
struct Mix {
  std::vector<double> values;   // [head_dim]
  std::vector<double> latents;  // [rank]
  double latent_weight = 0;
  const LatentMap* map = nullptr;
};

void add_latents(const SeenKey& key, double p, Mix& mix) {
  mix.map = key.run->latents();
  mix.latents.resize(static_cast<size_t>(mix.map->rank));
  mix.latent_weight += p;
  for (int64_t r = 0; r < mix.map->rank; ++r) {
    mix.latents[static_cast<size_t>(r)] += p * coded_element(*key.run->coded_values, key.token, r);
  }
}

// The mean's part, and that of the first num_expanded latents.
void expand(Mix& mix, size_t num_expanded) {
  for (size_t c = 0; c < mix.values.size() && mix.map != nullptr; ++c) {
    double sum = mix.latent_weight * mix.map->mean[c];
    for (size_t r = 0; r < num_expanded; ++r) {
      sum += mix.latents[r] * mix.map->decode[r * mix.values.size() + c];
    }
    mix.values[c] += sum;
  }
}

void add_value(const SeenKey& key, double p, std::span<double> mix) {
  const AttendRun& run = *key.run;
  const auto head_dim = static_cast<int64_t>(mix.size());
  std::vector<double> value(mix.size());
  for (int64_t c = 0; c < head_dim; ++c) {
    value[c] = run.coded_values != nullptr ? coded_element(*run.coded_values, key.token, c)
                                           : dense_value(run, key.token, c, head_dim);
  }
  if (run.coded_values != nullptr && run.coded_values->hadamard)
    walsh_hadamard(value.data(), 1, head_dim);
  for (int64_t c = 0; c < head_dim; ++c) mix[c] += p * value[c];
}

// Scaled.
double score_of(const AttendShape& shape, const SeenKey& key, const float* q,
                const LatentQuery& latents) {
  const AttendRun& run = *key.run;
  if (run.key_latents() != nullptr) return shape.scale * latent_score(run, key.token, latents);
  if (run.is_coded()) {
    return shape.scale * raw_score(run, key.token, q) +
           logit_bias(*run.coded_keys, key.token, shape.scale, q);
  }
  if (run.is_rows()) return shape.scale * raw_score(run, key.token, q);
  return shape.scale * dense_score(run, key.token, {q, static_cast<size_t>(shape.head_dim)});
}

// latent_sums: empty when latents are expanded.
void attend_row(const AttendShape& shape, const AttendJob& job, const float* q,
                std::vector<SeenKey>& seen, float* out, std::span<float> latent_sums) {
  const auto head_dim = static_cast<size_t>(shape.head_dim);
  const LatentQuery latents = latent_query(job, q);
  double max = -std::numeric_limits<double>::infinity();
  for (SeenKey& key : seen) {
    key.score = score_of(shape, key, q, latents);
    max = std::max(max, key.score);
  }
  double sum = 0;
  for (SeenKey& key : seen) {
    key.score = std::exp(key.score - max);
    sum += key.score;
  }
  Mix mix;
  mix.values.resize(head_dim);
  for (const SeenKey& key : seen) {
    const double p = key.score / sum;
    key.run->latents() == nullptr ? add_value(key, p, mix.values) : add_latents(key, p, mix);
  }
  expand(mix, latent_sums.empty() ? mix.latents.size() : 0);
  mix.latents.resize(latent_sums.size());
  for (size_t r = 0; r < latent_sums.size(); ++r) {
    latent_sums[r] = static_cast<float>(mix.latents[r]);
  }
  for (size_t c = 0; c < head_dim; ++c) out[c] = static_cast<float>(mix.values[c]);
}

}  // namespace

void attend_queries(const AttendShape& shape, const AttendJob& job, int64_t first_query,
                    int64_t end_query) noexcept {
  std::vector<SeenKey> seen;
  for (int64_t query = first_query; query < end_query; ++query) {
    find_seen_keys(job, query, seen);
    for (int64_t head = 0; head < shape.group; ++head) {
      const int64_t offset = query * job.query_stride + head * shape.head_dim;
      const LatentSums& sums = job.latent_sums;
      float* latents = sums.data + query * sums.stride + head * sums.width;
      attend_row(shape, job, job.query + offset, seen, job.out + offset,
                 {latents, static_cast<size_t>(sums.width)});
    }
  }
}

}  // namespace kvquant::ref
