// Times what a decode step or a chunk of a prompt on a device costs the host: bookkeeping of a
// DeviceCache and the description of the work, of a device whose kernels do nothing. Where kernels
// take less time than this, the GPU waits for the host. Needs no GPU; prints one line per case.
//
//   device_host_timing [DEPTH]      tokens of each sequence, 16384 if not given
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <variant>
#include <vector>

#include "base/timer.h"
#include "cache/device_cache.h"
#include "kvquant/spec.h"
#include "ops/cuda_step.h"

namespace kvquant {
namespace {

constexpr int64_t kHeadDim = 128;
constexpr int64_t kLayers = 4;
constexpr int64_t kChunk = 512;
constexpr int kSteps = 48;
constexpr float kOutlierShare = 0.01f;

// Counts of outliers are all that it makes up; everything else the host never reads.
class IdleDevice final : public CudaDevice {
 public:
  void copy_in(void* to, const void* from, int64_t num_bytes) override {
    std::memcpy(to, from, static_cast<size_t>(num_bytes));
  }
  void copy_out(void* to, const void* from, int64_t num_bytes) override {
    std::memcpy(to, from, static_cast<size_t>(num_bytes));
  }
  void copy(void*, const void*, int64_t) override {}
  void clear(void*, int64_t) override {}
  void run(const CudaCall& call) override {
    const auto* encode = std::get_if<CudaEncode>(&call);
    for (int64_t i = 0; encode != nullptr && i < encode->num_jobs; ++i) {
      const CudaEncodeJob& job = encode->jobs[i];
      if (job.num_outliers == nullptr) continue;
      const auto size = static_cast<float>(job.encode.num_tokens * job.encode.head_dim);
      *job.num_outliers = static_cast<int32_t>(size * kOutlierShare);
    }
  }
  void attend(const CudaAttendNode&) override {}
  void multiply(const CudaProduct&) override {}
  void run_nodes(std::span<const CudaNode>) override {}

 private:
  void* take(int64_t num_bytes) override { return std::calloc(static_cast<size_t>(num_bytes), 1); }
  void give(void* data, int64_t) noexcept override { std::free(data); }
};

struct Case {
  int64_t batch, num_kv_heads;
};
constexpr Case kCases[] = {{1, 8}, {16, 8}, {16, 32}};

double median(std::vector<double>& ms) {
  const auto middle = ms.begin() + std::ssize(ms) / 2;
  std::nth_element(ms.begin(), middle, ms.end());
  return *middle;
}

// Milliseconds of the host in one layer, the median: for a chunk of a prompt, and for a token of
// every sequence.
struct HostTimes {
  double chunk, step;
};
HostTimes time_steps(const char* spec, const Case& shape, int64_t depth, ThreadPool& pool) {
  const auto owned = gather_steps(std::make_unique<IdleDevice>());
  CudaDevice& device = *owned;
  const RopeTable rope(kHeadDim, depth + kChunk, 10000.0);
  const KvShape kv{kLayers, shape.num_kv_heads, kHeadDim, 0};
  DeviceCache cache(kv, parse_spec(spec), rope, device, pool,
                    {.num_sequences = shape.batch, .max_tokens = depth + kSteps});
  const int64_t width = shape.num_kv_heads * kHeadDim;
  const DeviceArray<float> rows(device, shape.batch * kChunk * width);
  std::vector<DeviceCache::SequenceId> ids;
  for (int64_t i = 0; i < shape.batch; ++i) ids.push_back(cache.add_sequence());
  std::vector<double> prefill;
  for (const auto id : ids) {
    for (int64_t first = 0; first < depth; first += kChunk) {
      const int64_t size = std::min(kChunk, depth - first);
      const Timer timer;
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        cache.append(layer, id, {rows.data(), rows.data(), width, size});
        const DeviceCache::Queries queries{id, rows.data(), rows.data(), width, size};
        cache.attend(layer, {&queries, 1}, {kHeadDim, 1, 0.1f}, Precision::kBF16);
        cache.settle(layer, id);
      }
      prefill.push_back(timer.seconds() * 1e3 / kLayers);
    }
  }
  std::vector<double> ms;
  for (int step = 0; step < kSteps; ++step) {
    const Timer timer;
    StepOf gathered(device, true);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<DeviceCache::Queries> queries;
      for (size_t i = 0; i < ids.size(); ++i) {
        float* row = rows.data() + static_cast<int64_t>(i) * width;
        cache.append(layer, ids[i], {row, row, width, 1});
        queries.push_back({ids[i], row, row, width, 1});
      }
      cache.attend(layer, queries, {kHeadDim, 1, 0.1f}, Precision::kBF16);
      for (const auto id : ids) cache.settle(layer, id);
    }
    gathered.end();
    ms.push_back(timer.seconds() * 1e3 / kLayers);
  }
  return {median(prefill), median(ms)};
}

}  // namespace
}  // namespace kvquant

int main(int argc, char** argv) {
  const int64_t depth = argc > 1 ? std::atoll(argv[1]) : 16384;
  kvquant::ThreadPool pool(1);
  for (const auto& shape : kvquant::kCases) {
    for (const char* spec : {"fp16", "nuq4", "nuq3-1%"}) {
      const auto times = kvquant::time_steps(spec, shape, depth, pool);
      fmt::print("{} x {} tokens, {} KV heads, {}: ms per layer: {:.3f} a step, {:.3f} a chunk\n",
                 shape.batch, depth, shape.num_kv_heads, spec, times.step, times.chunk);
      std::fflush(stdout);
    }
  }
}
