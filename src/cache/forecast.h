// What a cache will cost before it is filled: bytes of a real cache of one layer at every length
// until blocks repeat themselves, and from there on its growth by a block.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"

namespace kvquant {

class CacheForecast {
 public:
  // sequence_bytes[n]: what a sequence of n tokens holds, non-decreasing, n from 0 to at least a
  // block; from there on growth_bytes for each `block` tokens. Shared: once, for all sequences.
  CacheForecast(double shared_bytes, std::vector<double> sequence_bytes, int64_t block,
                double growth_bytes);

  // Of `batch` sequences of num_tokens each, half-empty blocks and windows included. Needs
  // num_tokens >= 0.
  double bytes(int64_t num_tokens, int64_t batch = 1) const;
  // What a token of a long sequence adds, averaged over a block.
  double bytes_per_token() const;

  // Into this much memory. 0 when not one token, or not one sequence, fits.
  int64_t longest_context(int64_t max_bytes) const;
  int64_t largest_batch(int64_t max_bytes, int64_t num_tokens) const;  // num_tokens >= 1

 private:
  double sequence_bytes(int64_t num_tokens) const;

  double shared_bytes_;
  std::vector<double> sequence_bytes_;
  int64_t block_;
  double growth_bytes_;
};

// As served, with outliers as normal data has them, without calibration and without the exact copy
// of a chunk that is being read. Layers with codecs of their own count as such. Throws what KvCache
// throws.
CacheForecast forecast_cache(const KvShape& shape, const CacheSpec& spec, ThreadPool& pool);

}  // namespace kvquant
