#include "ops/attend_device.h"

#include <vector>

namespace kvquant {

int64_t DeviceAttendScratch::num_bytes() const {
  return image.num_bytes() + jobs.num_bytes() + runs.num_bytes() + tasks.num_bytes() +
         merges.num_bytes() + states.num_bytes() + sums.num_bytes();
}

void attend_on_device(CudaDevice& device, const AttendShape& shape, std::span<const AttendJob> jobs,
                      Precision precision, const ResidentMemory& resident,
                      DeviceAttendScratch& scratch) {
  CudaImage image(&resident);
  pack_attend(shape, jobs, precision, image);
  image.place(nullptr);
  scratch.image.reserve_discarding(image.num_bytes());
  image.place(scratch.image.data());
  const CudaAttendCall packed = pack_attend(shape, jobs, precision, image);
  std::vector<std::byte> staging(static_cast<size_t>(image.num_bytes()));
  image.fill(staging.data());
  scratch.image.assign(staging);
  scratch.jobs.assign(packed.jobs);
  scratch.runs.assign(packed.runs);
  scratch.tasks.assign(packed.plan.tasks);
  scratch.merges.assign(packed.plan.merges);
  scratch.states.reserve_discarding(packed.plan.num_partial_rows);
  scratch.sums.reserve_discarding(packed.plan.num_partial_rows * shape.head_dim);
  CudaAttend call = make_call(shape, packed, scratch.states.data(), scratch.sums.data());
  call.jobs = scratch.jobs.data();
  call.runs = scratch.runs.data();
  call.tasks = scratch.tasks.data();
  call.merges = scratch.merges.data();
  device.attend(packed, call);
}

}  // namespace kvquant
