// A libnvidia-ml for tests. GPU 0 takes 1.5 J from one question to the next, GPU 1 has no counter
// of its energy; there is no other.
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kDone = 0, kInvalidArgument = 2, kNotSupported = 3;
int devices[2];
unsigned long long millijoules = 1000000;

}  // namespace

EXPORT int nvmlInit_v2() { return kDone; }
EXPORT int nvmlShutdown() { return kDone; }

EXPORT const char* nvmlErrorString(int status) {
  return status == kNotSupported ? "Not Supported" : "Invalid Argument";
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, int** device) {
  if (index > 1) return kInvalidArgument;
  *device = &devices[index];
  return kDone;
}

EXPORT int nvmlDeviceGetName(int*, char* name, unsigned size) {
  std::strncpy(name, "Fake GPU", size);
  return kDone;
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(int* device, unsigned long long* out) {
  if (device == &devices[1]) return kNotSupported;
  *out = millijoules += 1500;
  return kDone;
}
