#include "ops/cuda_device.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvquant/error.h"
#include "ops/cuda_device_test.h"

namespace kvquant {
namespace {

using testing::random_floats;

class CudaDevices : public testing::OnEachDevice {};
INSTANTIATE_TEST_SUITE_P(Devices, CudaDevices, ::testing::ValuesIn(cuda_backends()),
                         testing::device_test_name);

TEST_P(CudaDevices, CountTheBytesThatTheyHandOut) {
  EXPECT_EQ(device().allocated_bytes(), 0);
  {
    DeviceArray<float> a(device(), int64_t{10});
    DeviceArray<double> b(device());
    b.reserve_discarding(100);
    EXPECT_EQ(device().allocated_bytes(), 840);
    b = DeviceArray<double>(device(), int64_t{1});
    EXPECT_EQ(device().allocated_bytes(), 48);
  }
  EXPECT_EQ(device().allocated_bytes(), 0);
}

TEST_P(CudaDevices, CopiesComeBackAsTheyWent) {
  const auto x = random_floats(1000, 1);
  DeviceArray<float> a(device(), x), b(device(), int64_t{1000});
  device().copy(b.data(), a.data(), 4000);
  EXPECT_EQ(b.read(1000), x);
  device().clear(b.data(), 400);
  EXPECT_EQ(b.read(101)[99], 0);
  EXPECT_EQ(b.read(101)[100], x[100]);
}

TEST_P(CudaDevices, ProductsAreThoseOfTheDefinition) {
  const std::string missing = testing::missing_products(device());
  if (!missing.empty()) GTEST_SKIP() << missing;
  constexpr int64_t kRows = 3, kIn = 72, kOut = 40, kInStride = 80, kOutStride = 48;
  const auto w = random_floats(kOut * kIn, 2), x = random_floats(kRows * kInStride, 3);
  const auto before = random_floats(kRows * kOutStride, 4);
  std::vector<BFloat16> rounded, rounded_x;
  for (const float y : w) rounded.push_back(to_bfloat16(y));
  for (const float y : x) rounded_x.push_back(to_bfloat16(y));
  DeviceArray<float> weights(device(), w), inputs(device(), x);
  DeviceArray<BFloat16> bf16_weights(device(), rounded), bf16_inputs(device(), rounded_x);
  for (const bool is_bf16 : {false, true}) {
    for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd}) {
      DeviceArray<float> out(device(), before);
      device().multiply({.weights = is_bf16 ? nullptr : weights.data(),
                         .bf16_weights = is_bf16 ? bf16_weights.data() : nullptr,
                         .num_out = kOut,
                         .num_in = kIn,
                         .x = is_bf16 ? nullptr : inputs.data(),
                         .bf16_x = is_bf16 ? bf16_inputs.data() : nullptr,
                         .x_stride = kInStride,
                         .out = out.data(),
                         .out_stride = kOutStride,
                         .num_rows = kRows,
                         .epilogue = epilogue});
      const auto found = out.read(out.size());
      for (int64_t i = 0; i < std::ssize(found); ++i) {
        const int64_t row = i / kOutStride, column = i % kOutStride;
        double expected = column >= kOut || epilogue == Epilogue::kAdd ? before[i] : 0;
        for (int64_t k = 0; column < kOut && k < kIn; ++k) {
          const float a = w[column * kIn + k], b = x[row * kInStride + k];
          expected += is_bf16 ? double{round_to_bfloat16(a)} * round_to_bfloat16(b) : double{a} * b;
        }
        ASSERT_NEAR(found[i], expected, 1e-4) << "row " << row << ", column " << column;
      }
    }
  }
}

TEST(CudaDeviceMemory, BeyondTheDevicesIsOutOfMemoryAndWhatIsThereStays) {
  ThreadPool pool(1, ThreadPool::Pin::kNo);
  const auto device = emulated::open_device(pool, 1000);
  const auto x = random_floats(200, 5);
  DeviceArray<float> a(*device, x);
  EXPECT_THROW(DeviceArray<float>(*device, int64_t{51}), OutOfMemory);
  EXPECT_EQ(device->allocated_bytes(), 800);
  EXPECT_EQ(a.read(200), x);
}

TEST(CudaDeviceMemory, WithoutAGpuOpeningOneIsADeviceError) {
  if (cuda_backends().back() == Backend::kCuda) GTEST_SKIP() << "there is a GPU";
  EXPECT_THROW(cuda::open_device(0), DeviceError);
}

}  // namespace
}  // namespace kvquant
