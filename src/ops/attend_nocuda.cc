// In place of attend_cuda.cu in a program without CUDA.
#include "base/device.h"
#include "ops/attend_cuda.h"

namespace kvquant::cuda {

void attend(const AttendShape&, std::span<const AttendJob>, Precision) {
  check_device(probe_devices(), 0);  // says so
}

std::vector<double> time_attend(const AttendShape&, std::span<const AttendJob>, Precision, int) {
  check_device(probe_devices(), 0);
  return {};
}

}  // namespace kvquant::cuda
