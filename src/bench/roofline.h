// What this machine can do at best, and what the linear layers reach of it: memory bandwidth and
// GEMM peaks are measured, never looked up, so that shares of peak mean this machine, today.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/threads.h"
#include "ops/linear.h"

namespace kvquant {

// 1 GB is 1e9 bytes; all with every thread of the pool.
struct MachinePeaks {
  int num_threads = 0;
  double read_gb_per_s = 0;          // the best pass over 512 MiB
  double read_median_gb_per_s = 0;   // the median pass
  double copy_gb_per_s = 0;          // bytes read plus bytes written, best pass
  double bf16_gemm_gflop_per_s = 0;  // packed, operands in cache; 0 without bf16 dot products
  double f32_gemm_gflop_per_s = 0;
};

// Takes about two seconds and 512 MiB of memory. Throws OutOfMemory.
MachinePeaks measure_peaks(ThreadPool& pool);

struct LinearShape {
  std::string name;
  int64_t num_out = 0;
  int64_t num_in = 0;  // a multiple of 32 for 8-bit types
  WeightType type = WeightType::kBF16;
};

struct LinearTiming {
  std::string name;
  int64_t num_rows = 0;
  double time_s = 0;         // median of the runs
  double spread_s = 0;       // slowest minus fastest run
  double bytes = 0;          // weights, inputs and outputs, each once
  double flops = 0;          // 2 * num_rows * num_out * num_in
  double gb_per_s = 0;       // bytes / time_s
  double gflop_per_s = 0;    // flops / time_s
  double share_of_peak = 0;  // of the nearer roof: read bandwidth or the type's GEMM peak
};

// Times linear() on each shape with one row (a decode step; weights come from memory, not from
// cache) and with 512 (prefill). Each result is compared with the reference on one row before its
// time counts: throws std::runtime_error when it is wrong. Needs about 256 MB of memory.
std::vector<LinearTiming> time_linear(std::span<const LinearShape> shapes,
                                      const MachinePeaks& peaks, ThreadPool& pool);

}  // namespace kvquant
