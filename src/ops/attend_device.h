// attend() over memory that lies on a device already: only descriptions of the work are copied.
#pragma once

#include <cstdint>
#include <span>

#include "ops/attend.h"
#include "ops/cuda_device.h"

namespace kvquant {

// On the device, kept from call to call; grows to the largest need.
struct DeviceAttendScratch {
  explicit DeviceAttendScratch(CudaDevice& device)
      : image(device),
        jobs(device),
        runs(device),
        tasks(device),
        merges(device),
        states(device),
        sums(device) {}
  int64_t num_bytes() const;

  DeviceArray<std::byte> image;  // what of the runs is not resident: tables of blocks and pages
  DeviceArray<CudaJob> jobs;
  DeviceArray<CudaRun> runs;
  DeviceArray<AttendTask> tasks;
  DeviceArray<AttendMerge> merges;
  DeviceArray<SoftmaxState> states;
  DeviceArray<float> sums;
};

// Queues out = softmax(scale * q k^T) v, see attend(). Queries, results, blocks, pages, tiles and
// rows are addresses of the device and in `resident`; what else is not there (tables) is copied.
// Here each side of a run is by itself codes, rows or tiles, whatever the other is.
// Throws std::invalid_argument for what kernels don't read (attend_cuda.h).
void attend_on_device(CudaDevice& device, const AttendShape& shape, std::span<const AttendJob> jobs,
                      Precision precision, const ResidentMemory& resident,
                      DeviceAttendScratch& scratch);

}  // namespace kvquant
