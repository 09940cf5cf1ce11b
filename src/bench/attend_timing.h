// Timings of attention over an uncompressed cache: a decode step at a depth, and a prefill chunk
// that ends there. The cache holds several layers, so that a decode step reads it from memory and
// not from a processor cache. Results are compared with the reference before anything is timed.
#pragma once

#include <cstdint>

#include "base/backend.h"
#include "base/threads.h"
#include "formats/dense_tile.h"
#include "formats/precision.h"

namespace kvquant {

struct AttendTimingShape {
  int64_t num_layers = 8;
  int64_t num_heads = 8;
  int64_t num_kv_heads = 8;
  int64_t head_dim = 128;
  int64_t depth = 16384;  // tokens in the cache
  int64_t chunk = 512;    // queries of a prefill chunk, the last `chunk` of `depth` tokens
  DenseType type = DenseType::kF16;
  Precision precision = Precision::kBF16;
  Backend backend = Backend::kReference;
  int num_runs = 10;  // timed ones, after one to warm up
};

struct AttendTiming {
  double decode_ms = 0;  // median of one token through all layers
  double decode_best_ms = 0;
  double decode_gb_per_s = 0;  // bytes of the cache over the median, 1 GB = 1e9 bytes
  double prefill_ms = 0;       // median of one chunk through one layer; 0 if chunk is 0
  double prefill_best_ms = 0;
  double prefill_gflop_per_s = 0;  // 4 * head_dim per pair of query head and key it sees
  int64_t cache_bytes = 0;         // of all layers
};

// Throws std::invalid_argument on bad shapes, std::runtime_error when results are wrong.
AttendTiming time_attend(const AttendTimingShape& shape, ThreadPool& pool);

}  // namespace kvquant
