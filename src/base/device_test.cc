#include "base/device.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "kvquant/error.h"

namespace kvquant {
namespace {

DeviceProbe two_gpus() {
  return {13000, 13000, {{"NVIDIA H200", 9, 0, 132, 1}, {"Tesla T4", 7, 5, 40, 1}}, ""};
}

std::string refusal(const DeviceProbe& probe, int index) {
  try {
    check_device(probe, index);
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "";
}

TEST(Device, AGpuThatKernelsAreCompiledForIsFound) {
  EXPECT_EQ(check_device(two_gpus(), 0).name, "NVIDIA H200");
  DeviceProbe newer = two_gpus();
  newer.driver_version = 13020;
  EXPECT_EQ(refusal(newer, 0), "");
}

TEST(Device, WhatIsMissingIsSaidInOneLine) {
  DeviceProbe probe = two_gpus();
  EXPECT_EQ(refusal(probe, 2), "device cuda:2 is out of range: there are cuda:0 to cuda:1");
  EXPECT_EQ(refusal(probe, -1), "device cuda:-1 is out of range: there are cuda:0 to cuda:1");
  EXPECT_EQ(refusal(probe, 1),
            "device cuda:1 (Tesla T4) has compute capability 7.5, kernels need 8.0 or more");
  probe.devices.pop_back();
  EXPECT_EQ(refusal(probe, 1), "device cuda:1 is out of range: there is only cuda:0");
  probe.fault = "system not yet initialized";
  EXPECT_EQ(refusal(probe, 0), "device cuda:0: the NVIDIA driver says: system not yet initialized");
  probe.driver_version = 12020;  // the fault follows from it
  EXPECT_EQ(refusal(probe, 0),
            "device cuda:0: the NVIDIA driver knows CUDA 12.2, this program needs 13.0; update the "
            "driver");
  EXPECT_EQ(refusal({13000, 0, {}, "driver too old"}, 0),
            "device cuda:0: no NVIDIA driver was found");
  EXPECT_EQ(refusal({13000, 13000, {}, ""}, 1), "device cuda:1: no NVIDIA GPU was found");
  EXPECT_EQ(refusal({}, 0),
            "device cuda:0: this program was built without CUDA; configure it with "
            "-DKVQUANT_CUDA=ON where nvcc is");
}

TEST(Device, NamesAreCpuCudaAndCudaWithIndices) {
  using Indices = std::vector<int>;
  EXPECT_EQ(parse_devices("cpu"), Indices{});
  EXPECT_EQ(parse_devices("cuda"), Indices{0});
  EXPECT_EQ(parse_devices("cuda:17"), Indices{17});
  EXPECT_EQ(parse_devices("cuda:1,0,3"), (Indices{1, 0, 3}));
  for (const char* wrong :
       {"", "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda0", "CUDA", "cuda:1,", "cuda:,1",
        "cuda:1,,2", "cuda:1,cpu", "cpu,cuda:1", "cuda:0, 1", "cuda:2,1,2"}) {
    EXPECT_THROW(parse_devices(wrong), std::invalid_argument) << wrong;
  }
}

TEST(Device, ThisMachineIsProbedWithoutAFault) {
  const DeviceProbe probe = probe_devices();
  EXPECT_EQ(has_usable_device(), refusal(probe, 0).empty());
}

}  // namespace
}  // namespace kvquant
