#include "ops/attend_device.h"

#include <vector>

namespace kvquant {

DeviceAttention::DeviceAttention(CudaDevice& device)
    : device_(device),
      jobs_(device),
      runs_(device),
      tasks_(device),
      merges_(device),
      states_(device),
      sums_(device) {}

int64_t DeviceAttention::num_bytes() const {
  return jobs_.num_bytes() + runs_.num_bytes() + tasks_.num_bytes() + merges_.num_bytes() +
         states_.num_bytes() + sums_.num_bytes();
}

DeviceAttention::Planned DeviceAttention::planned_for(const DeviceAttendCall& call) const {
  Planned out{call_.is_bf16,       device_.step(),   call.num_kv_heads,
              call.shape.head_dim, call.shape.group, {}};
  for (const DeviceAttendJob& job : call.jobs) {
    out.numbers.insert(out.numbers.end(), {job.num_queries, job.first_position, job.num_runs});
    for (int64_t i = 0; i < job.num_runs; ++i) {
      const CudaRun& run = call.runs[static_cast<size_t>(job.first_run + i)];
      const auto [num_tokens, first_position, min_lag, max_lag] = run.window;
      out.numbers.insert(out.numbers.end(), {num_tokens, first_position, min_lag, max_lag,
                                             static_cast<int64_t>(run.kind)});
    }
  }
  return out;
}

void DeviceAttention::plan(const DeviceAttendCall& call) {
  Planned wanted = planned_for(call);
  if (wanted == planned_) return;
  std::vector<std::vector<PlannedRun>> runs;
  std::vector<PlannedJob> jobs;
  for (const DeviceAttendJob& job : call.jobs) {
    auto& of_job = runs.emplace_back();
    for (int64_t i = 0; i < job.num_runs; ++i) {
      const CudaRun& run = call.runs[static_cast<size_t>(job.first_run + i)];
      of_job.push_back({run.window, run.kind});
    }
    jobs.insert(jobs.end(), static_cast<size_t>(call.num_kv_heads),
                {job.num_queries, job.first_position, of_job});
  }
  const int64_t head_dim = call.shape.head_dim;
  plan_attend(call.shape.group, cuda_cut(call_.is_bf16, head_dim),
              std::span<const PlannedJob>(jobs), call_.plan);
  tasks_at_ = staged(device_, std::span<const AttendTask>(call_.plan.tasks), tasks_);
  merges_at_ = staged(device_, std::span<const AttendMerge>(call_.plan.merges), merges_);
  states_.reserve_discarding(call_.plan.num_partial_rows);
  sums_.reserve_discarding(call_.plan.num_partial_rows * head_dim);
  planned_ = std::move(wanted);
}

void DeviceAttention::attend(const DeviceAttendCall& call) {
  check_cuda_shape(call.shape);
  call_.is_bf16 = is_for_tensor_cores(call.precision, call.runs);
  plan(call);
  size_call(call.shape, call.runs, call_);
  call_.jobs.clear();
  const int64_t width = call.shape.group * call.shape.head_dim;
  for (const DeviceAttendJob& job : call.jobs) {
    for (int64_t head = 0; head < call.num_kv_heads; ++head) {
      CudaJob of_head;
      of_head.query = job.query + head * width;
      of_head.out = job.out + head * width;
      of_head.query_stride = of_head.out_stride = job.stride;
      of_head.first_position = job.first_position;
      of_head.head = head;
      of_head.first_run = job.first_run;
      of_head.num_runs = job.num_runs;
      const auto at = static_cast<size_t>(head);
      if (!job.latents.empty()) of_head.latents = job.latents[at];
      if (!job.key_latents.empty()) of_head.key_latents = job.key_latents[at];
      call_.jobs.push_back(of_head);
    }
  }
  CudaAttend launched = make_call(call.shape, call_, states_.data(), sums_.data());
  launched.jobs = staged(device_, std::span<const CudaJob>(call_.jobs), jobs_);
  launched.runs = staged(device_, call.runs, runs_);
  launched.tasks = tasks_at_;
  launched.merges = merges_at_;
  device_.attend({call_, launched});
}

}  // namespace kvquant
