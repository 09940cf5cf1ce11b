#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/device.h"
#include "base/device_memory.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

void check_allocated(cudaError_t error, int64_t num_bytes, const char* where) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory("out of " + std::string(where) + " memory: " + std::to_string(num_bytes) +
                      " bytes were asked for");
  }
  check_cuda(error, "allocating memory");
}

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }

}  // namespace

void check_cuda(int error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  throw DeviceError(std::string("cuda: ") + what + ": " +
                    cudaGetErrorString(static_cast<cudaError_t>(error)));
}

DeviceProbe probe_devices() {
  DeviceProbe probe;
  probe.built_version = CUDART_VERSION;
  cudaDriverGetVersion(&probe.driver_version);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error != cudaSuccess && error != cudaErrorNoDevice) probe.fault = cudaGetErrorString(error);
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp found{};
    check_cuda(cudaGetDeviceProperties(&found, i), "reading a device's properties");
    probe.devices.push_back({found.name, found.major, found.minor, found.multiProcessorCount,
                             static_cast<int64_t>(found.totalGlobalMem)});
  }
  return probe;
}

void use_device(int index) {
  static const DeviceProbe probe = probe_devices();
  check_device(probe, index);
  check_cuda(cudaSetDevice(index), "choosing a device");
}

void copy_from_device(int index, void* to, const void* from, int64_t num_bytes) {
  check_device(probe_devices(), index);
  int current = 0;
  check_cuda(cudaGetDevice(&current), "asking for the current device");
  use_device(index);
  const cudaError_t waited = cudaDeviceSynchronize();
  const cudaError_t copied =
      cudaMemcpy(to, from, static_cast<size_t>(num_bytes), cudaMemcpyDeviceToHost);
  check_cuda(cudaSetDevice(current), "going back to a device");
  check_cuda(waited, "waiting for a device");
  check_cuda(copied, "copying from a device");
}

void* device_allocate(int64_t num_bytes) {
  void* data = nullptr;
  check_allocated(cudaMalloc(&data, static_cast<size_t>(num_bytes)), num_bytes, "device");
  return data;
}

void device_free(void* data) noexcept { cudaFree(data); }

void* pinned_allocate(int64_t num_bytes) {
  void* data = nullptr;
  check_allocated(cudaMallocHost(&data, static_cast<size_t>(num_bytes)), num_bytes, "pinned");
  return data;
}

void pinned_free(void* data) noexcept { cudaFreeHost(data); }

DeviceStream::DeviceStream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  handle_ = stream;
}

DeviceStream::~DeviceStream() { cudaStreamDestroy(stream_of(handle_)); }

void DeviceStream::wait() const {
  check_cuda(cudaStreamSynchronize(stream_of(handle_)), "waiting for a stream");
}

void DeviceStream::copy_to_device(void* to, const void* from, int64_t num_bytes) const {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(num_bytes), cudaMemcpyHostToDevice,
                             stream_of(handle_)),
             "copying to the device");
}

void DeviceStream::copy_to_host(void* to, const void* from, int64_t num_bytes) const {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(num_bytes), cudaMemcpyDeviceToHost,
                             stream_of(handle_)),
             "copying from the device");
}

void DeviceStream::copy_on_device(void* to, const void* from, int64_t num_bytes) const {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(num_bytes), cudaMemcpyDeviceToDevice,
                             stream_of(handle_)),
             "copying on the device");
}

void DeviceStream::clear(void* to, int64_t num_bytes) const {
  check_cuda(cudaMemsetAsync(to, 0, static_cast<size_t>(num_bytes), stream_of(handle_)),
             "clearing memory");
}

DeviceEvent::DeviceEvent() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "making an event");
  handle_ = event;
}

DeviceEvent::~DeviceEvent() { cudaEventDestroy(event_of(handle_)); }

void DeviceEvent::record(const DeviceStream& stream) {
  check_cuda(cudaEventRecord(event_of(handle_), stream_of(stream.handle())), "recording an event");
}

void DeviceEvent::wait() const {
  check_cuda(cudaEventSynchronize(event_of(handle_)), "waiting for an event");
}

double DeviceEvent::ms_since(const DeviceEvent& begin) const {
  check_cuda(cudaEventSynchronize(event_of(handle_)), "waiting for an event");
  float ms = 0;
  check_cuda(cudaEventElapsedTime(&ms, event_of(begin.handle_), event_of(handle_)),
             "reading events");
  return ms;
}

PinnedStaging::PinnedStaging() : memory_(kNumParts * kPartBytes) {}

std::byte* PinnedStaging::next_part() {
  part_ = (part_ + 1) % kNumParts;
  used_ = 0;
  copied_[part_].wait();
  return memory_.data() + part_ * kPartBytes;
}

void PinnedStaging::copy_in(void* to, const void* from, int64_t num_bytes,
                            const DeviceStream& stream) {
  for (int64_t first = 0; first < num_bytes; first += kPartBytes) {
    const int64_t size = std::min(num_bytes - first, kPartBytes);
    if (used_ + size > kPartBytes) next_part();
    std::byte* at = memory_.data() + part_ * kPartBytes + used_;
    std::memcpy(at, static_cast<const std::byte*>(from) + first, static_cast<size_t>(size));
    stream.copy_to_device(static_cast<std::byte*>(to) + first, at, size);
    copied_[part_].record(stream);
    used_ += size;
  }
}

void PinnedStaging::copy_out(void* to, const void* from, int64_t num_bytes,
                             const DeviceStream& stream) {
  for (int64_t first = 0; first < num_bytes; first += kPartBytes) {
    const int64_t size = std::min(num_bytes - first, kPartBytes);
    std::byte* at = next_part();
    stream.copy_to_host(at, static_cast<const std::byte*>(from) + first, size);
    stream.wait();
    std::memcpy(static_cast<std::byte*>(to) + first, at, static_cast<size_t>(size));
  }
}

void check_launch(const char* what) { check_cuda(cudaGetLastError(), what); }

}  // namespace kvquant
