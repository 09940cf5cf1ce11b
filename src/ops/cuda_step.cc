#include "ops/cuda_step.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace kvquant {
namespace {

constexpr int64_t kFirstBytes = int64_t{1} << 20;  // staged in a step; grows
constexpr int64_t kAlignment = 256;

class Gathering final : public CudaDevice {
 public:
  explicit Gathering(std::unique_ptr<CudaDevice> inner) : inner_(std::move(inner)) {}
  ~Gathering() override { release(staged_, staged_bytes_); }

  void copy_in(void* to, const void* from, int64_t num_bytes) override {
    flush();
    inner_->copy_in(to, from, num_bytes);
  }
  void copy_out(void* to, const void* from, int64_t num_bytes) override {
    flush();
    inner_->copy_out(to, from, num_bytes);
  }
  void copy(void* to, const void* from, int64_t num_bytes) override {
    flush();
    inner_->copy(to, from, num_bytes);
  }
  void clear(void* to, int64_t num_bytes) override {
    flush();
    inner_->clear(to, num_bytes);
  }

  void run(const CudaCall& call) override {
    if (!is_in_step_) return inner_->run(call);
    nodes_.emplace_back(call);
  }
  void attend(const CudaAttendNode& work) override {
    if (!is_in_step_) return inner_->attend(work);
    CudaAttendNode node = work;
    const int64_t counts[] = {node.num_tasks, node.num_merges};
    node.call.counts = static_cast<const int64_t*>(stage(counts, sizeof(counts)));
    if (node.call.counts != nullptr) {
      node.num_tasks = step_room(node.num_tasks);
      node.num_merges = step_room(node.num_merges);
    }
    nodes_.emplace_back(node);
  }
  void multiply(const CudaProduct& product) override {
    if (!is_in_step_) return inner_->multiply(product);
    nodes_.emplace_back(product);
  }
  void prepare_products() override { inner_->prepare_products(); }
  void run_nodes(std::span<const CudaNode> nodes) override { inner_->run_nodes(nodes); }
  int64_t num_replays() const override { return inner_->num_replays(); }

  void begin_step() override {
    if (wanted_bytes_ > staged_bytes_) {
      release(staged_, staged_bytes_);
      staged_ = nullptr;
      staged_bytes_ = 0;
      staged_ = allocate(wanted_bytes_);
      staged_bytes_ = wanted_bytes_;
    }
    host_.clear();
    num_uploaded_ = 0;
    is_in_step_ = true;
    ++step_;
  }
  void end_step() override {
    flush();
    is_in_step_ = false;
  }
  int64_t step() const override { return is_in_step_ ? step_ : 0; }

  const void* stage(const void* from, int64_t num_bytes) override {
    if (!is_in_step_) return nullptr;
    const int64_t first = std::ssize(host_);
    const int64_t end = first + (step_room(num_bytes) + kAlignment - 1) / kAlignment * kAlignment;
    if (end > staged_bytes_) {  // there will be room in the next step
      wanted_bytes_ = std::max(wanted_bytes_, end + end / 2);
      return nullptr;
    }
    host_.resize(static_cast<size_t>(end));
    std::memcpy(host_.data() + first, from, static_cast<size_t>(num_bytes));
    return staged_ + first;
  }

 private:
  void* take(int64_t num_bytes) override { return inner_->allocate(num_bytes); }
  void give(void* data, int64_t num_bytes) noexcept override {
    // What is gathered and still reads it comes first; what it fails with, the next call says.
    try {
      flush();
    } catch (...) {
      nodes_.clear();
    }
    inner_->release(static_cast<std::byte*>(data), num_bytes);
  }

  void flush() {
    if (nodes_.empty()) return;
    const int64_t size = std::ssize(host_) - num_uploaded_;
    if (size > 0) inner_->copy_in(staged_ + num_uploaded_, host_.data() + num_uploaded_, size);
    num_uploaded_ = std::ssize(host_);
    std::vector<CudaNode> nodes;
    nodes.swap(nodes_);
    inner_->run_nodes(nodes);
    nodes.clear();
    nodes_ = std::move(nodes);  // its memory
  }

  std::unique_ptr<CudaDevice> inner_;
  bool is_in_step_ = false;
  int64_t step_ = 0;
  std::vector<CudaNode> nodes_;  // that wait
  std::vector<std::byte> host_;  // staged in this step, the first num_uploaded_ being there
  std::byte* staged_ = nullptr;
  int64_t staged_bytes_ = 0, wanted_bytes_ = kFirstBytes, num_uploaded_ = 0;
};

}  // namespace

std::unique_ptr<CudaDevice> gather_steps(std::unique_ptr<CudaDevice> inner) {
  return std::make_unique<Gathering>(std::move(inner));
}

}  // namespace kvquant
