#include "cache/forecast.h"

#include <algorithm>
#include <cassert>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "formats/codec_table.h"
#include "quant/value_basis.h"

namespace kvquant {
namespace {

constexpr int64_t kPrompt = 512;             // tokens of a first chunk, as sessions read prompts
constexpr int64_t kGrowthTokens = 2048;      // at least so many show how a long cache grows
constexpr int64_t kLargestWindow = 1 << 16;  // windows are filled up to this
constexpr int64_t kMostTokens = int64_t{1} << 48;

struct Lengths {
  int64_t longest;     // that is tried
  int64_t num_blocks;  // the last so many blocks show the growth
};

Lengths lengths_of(const CacheSpec& spec) {
  const CacheSpec full = with_windows(spec, CacheMode::kAsServed);
  const int64_t windows = std::min<int64_t>(*full.sink, kLargestWindow) +
                          std::min<int64_t>(*full.recent, kLargestWindow);
  const int64_t num_blocks = (kGrowthTokens + spec.block - 1) / spec.block;
  // The first block behind the windows is not counted: its parameters are not there at once.
  return {std::max(windows, kPrompt) + (num_blocks + 1) * spec.block, num_blocks};
}

// Of a cache of one layer: what it holds without sequences, and a sequence at every length.
struct Curve {
  double shared_bytes = 0;
  std::vector<double> sequence_bytes;  // [longest + 1]
};

class Feed {
 public:
  Feed(const KvShape& shape, const CacheSpec& spec, int64_t longest, ThreadPool& pool)
      : rope_(shape.head_dim, longest, 10000.0),
        cache_(shape, spec, CacheMode::kAsServed, rope_, pool,
               std::make_shared<const Calibration>(identity_bases(
                   {shape.num_layers, shape.num_kv_heads, shape.num_kv_heads, shape.head_dim}))),
        shared_bytes_(static_cast<double>(cache_.memory_bytes())),
        id_(cache_.add_sequence()),
        row_(shape.num_kv_heads * shape.head_dim),
        keys_(static_cast<size_t>((kRows + kPrompt) * row_)),
        values_(keys_.size()) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (auto* x : {&keys_, &values_}) {
      for (float& v : *x) v = normal(rng);
    }
  }

  double shared_bytes() const { return shared_bytes_; }

  // Appends num_tokens <= kPrompt; returns what the sequence holds then.
  double append(int64_t num_tokens) {
    const KvShape& shape = cache_.shape();
    const int64_t at = cache_.length(id_) % kRows * row_;
    const int64_t dims[3] = {num_tokens, shape.num_kv_heads, shape.head_dim};
    cache_.append(0, id_, row_major<const float, 3>(keys_.data() + at, dims),
                  row_major<const float, 3>(values_.data() + at, dims));
    cache_.settle(id_);
    return static_cast<double>(cache_.memory_bytes()) - shared_bytes_;
  }

 private:
  static constexpr int64_t kRows = 1021;  // a prime, so that tiles differ

  RopeTable rope_;
  KvCache cache_;
  double shared_bytes_;
  KvCache::SequenceId id_;
  int64_t row_;
  std::vector<float> keys_, values_;  // [kRows + kPrompt, row_]
};

Curve measure(const KvShape& shape, const CacheSpec& spec, int64_t longest, ThreadPool& pool) {
  Feed tokens(shape, spec, longest, pool);
  Curve curve;
  curve.shared_bytes = tokens.shared_bytes();
  curve.sequence_bytes.push_back(0);
  for (int64_t i = 1; i < kPrompt; ++i) curve.sequence_bytes.push_back(tokens.append(1));
  // Key ranges fitted to more than a few tokens give fewer outliers.
  Feed prompt(shape, spec, longest, pool);
  curve.sequence_bytes.push_back(prompt.append(kPrompt));
  for (int64_t i = kPrompt + 1; i <= longest; ++i) {
    curve.sequence_bytes.push_back(prompt.append(1));
  }
  for (size_t i = 1; i < curve.sequence_bytes.size(); ++i) {  // what was needed on the way counts
    double& bytes = curve.sequence_bytes[i];
    bytes = std::max(bytes, curve.sequence_bytes[i - 1]);
  }
  return curve;
}

}  // namespace

CacheForecast::CacheForecast(double shared_bytes, std::vector<double> sequence_bytes, int64_t block,
                             double growth_bytes)
    : shared_bytes_(shared_bytes),
      sequence_bytes_(std::move(sequence_bytes)),
      block_(block),
      growth_bytes_(growth_bytes) {
  assert(static_cast<int64_t>(sequence_bytes_.size()) > block_ && growth_bytes_ > 0);
}

double CacheForecast::sequence_bytes(int64_t num_tokens) const {
  const auto longest = static_cast<int64_t>(sequence_bytes_.size()) - 1;
  const int64_t num_blocks =
      num_tokens > longest ? (num_tokens - longest + block_ - 1) / block_ : 0;
  return sequence_bytes_[static_cast<size_t>(num_tokens - num_blocks * block_)] +
         static_cast<double>(num_blocks) * growth_bytes_;
}

double CacheForecast::bytes(int64_t num_tokens, int64_t batch) const {
  return shared_bytes_ + static_cast<double>(batch) * sequence_bytes(num_tokens);
}

double CacheForecast::bytes_per_token() const {
  return growth_bytes_ / static_cast<double>(block_);
}

int64_t CacheForecast::longest_context(int64_t max_bytes) const {
  int64_t fits = 0, too_long = kMostTokens;
  while (too_long - fits > 1) {
    const int64_t middle = fits + (too_long - fits) / 2;
    (bytes(middle) <= static_cast<double>(max_bytes) ? fits : too_long) = middle;
  }
  return fits;
}

int64_t CacheForecast::largest_batch(int64_t max_bytes, int64_t num_tokens) const {
  const double left = static_cast<double>(max_bytes) - shared_bytes_;
  return static_cast<int64_t>(std::max(0.0, left / sequence_bytes(num_tokens)));
}

CacheForecast forecast_cache(const KvShape& shape, const CacheSpec& spec, ThreadPool& pool) {
  const Lengths lengths = lengths_of(spec);
  KvShape one_layer = shape;
  one_layer.num_layers = 1;
  std::vector<std::pair<CacheSpec, Curve>> known;
  double shared_bytes = 0;
  std::vector<double> sequence_bytes(static_cast<size_t>(lengths.longest + 1));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    CacheSpec single = spec;
    single.key = spec.key_of(static_cast<int>(layer));
    single.value = spec.value_of(static_cast<int>(layer));
    single.overrides.clear();
    auto found = std::find_if(known.begin(), known.end(), [&](const auto& other) {
      return other.first.key == single.key && other.first.value == single.value;
    });
    const bool is_new = found == known.end();
    if (is_new) {
      known.emplace_back(single, measure(one_layer, single, lengths.longest, pool));
      found = known.end() - 1;
    }
    // Layers have bases of their own; all else they share.
    const bool is_own = needs_calibration(single.key) || needs_calibration(single.value);
    if (is_new || is_own) shared_bytes += found->second.shared_bytes;
    for (size_t i = 0; i < sequence_bytes.size(); ++i) {
      sequence_bytes[i] += found->second.sequence_bytes[i];
    }
  }
  const double growth =
      sequence_bytes.back() -
      sequence_bytes[static_cast<size_t>(lengths.longest - lengths.num_blocks * spec.block)];
  return {shared_bytes, std::move(sequence_bytes), spec.block,
          growth / static_cast<double>(lengths.num_blocks)};
}

}  // namespace kvquant
