// For tests of what runs on CUDA devices: each of them on the CPU that plays one and, where there
// is one, on a GPU.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/backend.h"
#include "kvquant/error.h"
#include "ops/cuda_device.h"

namespace kvquant::testing {

// Why a device can't multiply; empty: it can. cuBLASLt may be missing where there is a GPU.
inline std::string missing_products(CudaDevice& device) {
  const std::vector<float> one{1};
  DeviceArray<float> x(device, one), out(device, one);
  try {
    device.multiply({.weights = x.data(),
                     .num_out = 1,
                     .num_in = 1,
                     .x = x.data(),
                     .x_stride = 1,
                     .out = out.data(),
                     .out_stride = 1,
                     .num_rows = 1});
  } catch (const DeviceError& error) {
    const std::string text = error.what();
    const bool is_missing = text.find("built without") != std::string::npos ||
                            text.find("was not found") != std::string::npos;
    if (!is_missing) throw;
    return text;
  }
  return "";
}

class OnEachDevice : public ::testing::TestWithParam<Backend> {
 protected:
  CudaDevice& device() {
    if (!device_) {
      device_ = open();
    }
    return *device_;
  }

  std::unique_ptr<CudaDevice> open() {
    return GetParam() == Backend::kCuda ? cuda::open_device(0) : emulated::open_device(pool_);
  }

  ThreadPool pool_{2, ThreadPool::Pin::kNo};

 private:
  std::unique_ptr<CudaDevice> device_;
};

inline std::string device_test_name(const ::testing::TestParamInfo<Backend>& info) {
  return info.param == Backend::kCuda ? "Gpu" : "Emulated";
}

inline std::vector<float> random_floats(int64_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = 2 * normal(rng);
  return out;
}

}  // namespace kvquant::testing
