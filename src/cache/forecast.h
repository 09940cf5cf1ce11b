// What a cache will cost before it is filled: bytes of a real small cache, extrapolated.
#pragma once

#include "cache/kv_cache.h"

namespace kvquant {

struct CacheForecast {
  double fixed_bytes = 0;      // of a sequence: parameters, windows, codebooks
  double bytes_per_token = 0;  // blocks, averaged over a block; outliers as normal data has them

  double bytes(int64_t num_tokens) const {
    return fixed_bytes + bytes_per_token * static_cast<double>(num_tokens);
  }
};

// Fills caches of one layer with normal random data at two lengths, as served, and takes the
// difference. Specs with layer overrides are averaged over their layers.
CacheForecast forecast_cache(const KvShape& shape, const CacheSpec& spec, ThreadPool& pool);

}  // namespace kvquant
