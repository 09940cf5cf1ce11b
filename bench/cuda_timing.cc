// Times the attention kernels on GPU 0 for several specs, everything being on the device, and
// prints one JSON document (bench/result.h): what tools/gpu_check runs. Decode steps as a server
// has them, and a chunk of prefill over compressed history. Results are compared with the reference
// first.
//
//   cuda_timing [small]      small: a hundredth of the tokens, to see that it runs
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "base/device.h"
#include "base/device_memory.h"
#include "bench/attend_timing_cache.h"
#include "bench/result.h"
#include "ops/attend.h"
#include "ops/attend_cuda.h"

namespace kvquant {
namespace {

struct Case {
  const char* name;
  int64_t batch, num_kv_heads, group, depth, num_queries;
};

constexpr int64_t kHeadDim = 128;
constexpr int kRuns = 20;
constexpr Case kCases[] = {
    {"decode", 16, 32, 1, 16384, 1},
    {"decode", 16, 8, 4, 16384, 1},
    {"prefill", 1, 8, 4, 32768, 512},
};
constexpr const char* kSpecs[] = {"fp16",    "int8",    "nuq4",          "nuq4-1%",
                                  "nuq3-1%", "nuq2-1%", "nuq4,k=nuq4-1%"};

double median(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

// Queries and results of all jobs, one sequence after the other.
struct Queries {
  Queries(const Case& shape, const TimingCache& cache) {
    const int64_t row = shape.group * kHeadDim, size = shape.num_queries * row;
    const int64_t num_jobs = shape.batch * shape.num_kv_heads;
    query.resize(static_cast<size_t>(num_jobs * size));
    out.resize(query.size());
    uint64_t state = 42;
    for (float& x : query) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      x = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
    }
    for (int64_t i = 0; i < num_jobs; ++i) {
      AttendJob job;
      job.query = query.data() + i * size;
      job.out = out.data() + i * size;
      job.query_stride = row;
      job.num_queries = shape.num_queries;
      job.first_position = shape.depth - shape.num_queries;
      job.runs = cache.run(i / shape.num_kv_heads, i % shape.num_kv_heads);
      jobs.push_back(job);
    }
  }
  std::vector<float> query, out;
  std::vector<AttendJob> jobs;
};

// The largest difference of one row of the last job from the reference, relative to its largest
// value.
double error_of(const AttendShape& shape, const Queries& queries) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  AttendJob job = queries.jobs.back();
  const float* actual = job.out;
  std::vector<float> expected(static_cast<size_t>(shape.group * kHeadDim));
  job.out = expected.data();
  job.num_queries = 1;
  attend(shape, {&job, 1}, Precision::kF32, pool, Backend::kReference);
  double error = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(double{actual[i]} - double{expected[i]});
    if (!(difference <= error)) error = difference;  // NaN too
    largest = std::max(largest, std::abs(double{expected[i]}));
  }
  return error / largest;
}

Json time_case(const Case& shape, const char* spec) {
  const TimingCache cache({shape.batch, shape.num_kv_heads, kHeadDim, shape.depth},
                          parse_spec(spec));
  const AttendShape attend_shape{kHeadDim, shape.group, 1 / std::sqrt(float{kHeadDim})};
  Queries queries(shape, cache);
  const auto ms = cuda::time_attend(attend_shape, queries.jobs, Precision::kBF16, kRuns);
  const double middle = median(ms), error = error_of(attend_shape, queries);
  Json result = {{"what", shape.name},
                 {"spec", spec},
                 {"batch", shape.batch},
                 {"num_kv_heads", shape.num_kv_heads},
                 {"group", shape.group},
                 {"head_dim", kHeadDim},
                 {"n_depth", shape.depth},
                 {"num_queries", shape.num_queries},
                 {"ms_median", middle},
                 {"ms_min", *std::min_element(ms.begin(), ms.end())},
                 {"ms_max", *std::max_element(ms.begin(), ms.end())},
                 {"cache_bytes", cache.num_bytes()},
                 {"cache_gb_per_s", static_cast<double>(cache.num_bytes()) / middle * 1e-6},
                 {"relative_error", error},
                 {"is_right", error <= 0.05}};
  fmt::print(stderr, "{} {}/{} heads {}: {:.3f} ms, {:.0f} GB/s, error {:.1e}\n", shape.name,
             shape.group * shape.num_kv_heads, shape.num_kv_heads, spec, middle,
             result["cache_gb_per_s"].get<double>(), error);
  return result;
}

// Bytes read and written by a large copy within the device.
double copy_gb_per_s() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const DeviceBuffer<std::byte> from(kBytes), to(kBytes);
  const DeviceStream stream;
  std::vector<double> ms;
  for (int i = 0; i < 10; ++i) {
    DeviceEvent begin, end;
    begin.record(stream);
    stream.copy_on_device(to.data(), from.data(), kBytes);
    end.record(stream);
    ms.push_back(end.ms_since(begin));
  }
  return 2.0 * kBytes / median(ms) * 1e-6;
}

int run(bool is_small) {
  use_device(0);
  const DeviceProbe probe = probe_devices();
  Json config = {{"device", probe.devices[0].name}, {"runs", kRuns}, {"small", is_small}};
  config["copy_gb_per_s"] = copy_gb_per_s();
  Json document = make_document("cuda_timing", nullptr, config);
  bool all_right = true;
  for (Case shape : kCases) {
    if (is_small) {
      shape.depth /= 16;
      shape.batch = (shape.batch + 7) / 8;
    }
    for (const char* spec : kSpecs) {
      document["results"].push_back(time_case(shape, spec));
      all_right = all_right && document["results"].back()["is_right"].get<bool>();
    }
  }
  fmt::print("{}\n", document.dump(1));
  return all_right ? 0 : 1;
}

}  // namespace
}  // namespace kvquant

int main(int argc, char** argv) {
  try {
    return kvquant::run(argc > 1 && std::strcmp(argv[1], "small") == 0);
  } catch (const std::exception& error) {
    fmt::print(stderr, "cuda_timing: {}\n", error.what());
    return 3;
  }
}
