#include "ops/panel_gemm.h"

#include <omp.h>

#include <dnnl.hpp>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "kvquant/error.h"
#include "ops/linear.h"

namespace kvquant {
namespace {

// oneDNN fixes a primitive's threads when it is made. Callers may not be the thread that made the
// pool, which has set this already.
class SingleThreaded {
 public:
  SingleThreaded() : saved_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreaded() { omp_set_num_threads(saved_); }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  int saved_;
};

dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, PanelGemm::Type type,
                                      int64_t num_rows, int64_t padded_in) {
  using Tag = dnnl::memory::format_tag;
  using DataType = dnnl::memory::data_type;
  const bool bf16 = type == PanelGemm::Type::kBF16;
  const auto input = bf16 ? DataType::bf16 : DataType::f32;
  const auto panel = bf16 ? Tag::BA16a64b2a : Tag::ab;
  const dnnl::matmul::desc product({{num_rows, padded_in}, input, Tag::ab},
                                   {{padded_in, kPanelOutputs}, input, panel},
                                   {{num_rows, kPanelOutputs}, DataType::f32, Tag::ab});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {product, attributes, engine};
}

}  // namespace

struct PanelGemm::Plan {
  struct Worker {
    dnnl::stream stream;
    dnnl::memory x, panel, y, scratchpad;
    std::vector<dnnl_exec_arg_t> arguments;
  };
  dnnl::matmul::primitive_desc description;
  dnnl::matmul primitive;
  std::vector<Worker> workers;

  void add_worker(const dnnl::engine& engine) {
    Worker worker{dnnl::stream(engine),
                  {description.src_desc(), engine, nullptr},
                  {description.weights_desc(), engine, nullptr},
                  {description.dst_desc(), engine, nullptr},
                  {description.scratchpad_desc(), engine},
                  {}};
    worker.arguments = {{DNNL_ARG_SRC, worker.x.get()},
                        {DNNL_ARG_WEIGHTS, worker.panel.get()},
                        {DNNL_ARG_DST, worker.y.get()},
                        {DNNL_ARG_SCRATCHPAD, worker.scratchpad.get()}};
    workers.push_back(std::move(worker));
  }
};

struct PanelGemm::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::map<std::tuple<Type, int64_t, int64_t>, Plan> plans;
};

PanelGemm::PanelGemm() = default;
PanelGemm::~PanelGemm() = default;
PanelGemm::PanelGemm(PanelGemm&&) noexcept = default;
PanelGemm& PanelGemm::operator=(PanelGemm&&) noexcept = default;

PanelGemm::Plan& PanelGemm::plan(Type type, int64_t num_rows, int64_t padded_in,
                                 int num_workers) try {
  const SingleThreaded single_threaded;
  if (state_ == nullptr) state_ = std::make_unique<State>();
  auto found = state_->plans.find({type, num_rows, padded_in});
  if (found == state_->plans.end()) {
    Plan plan;
    plan.description = describe(state_->engine, type, num_rows, padded_in);
    // oneDNN's reference implementations are a thousand times slower than any other.
    const std::string kernel = plan.description.impl_info_str();
    if (kernel.starts_with("ref")) {
      throw DeviceError("linear: oneDNN has only " + kernel + " for a product of " +
                        std::to_string(num_rows) + " x " + std::to_string(padded_in) +
                        (type == Type::kBF16 ? " bf16" : " f32") + " inputs on this CPU");
    }
    plan.primitive = dnnl::matmul(plan.description);
    found = state_->plans.emplace(std::tuple(type, num_rows, padded_in), std::move(plan)).first;
  }
  Plan& plan = found->second;
  while (static_cast<int>(plan.workers.size()) < num_workers) plan.add_worker(state_->engine);
  return plan;
} catch (const dnnl::error& error) {
  const std::string message = std::string("linear: oneDNN: ") + error.what();
  if (error.status == dnnl_out_of_memory) throw OutOfMemory(message);
  throw DeviceError(message);
}

bool PanelGemm::multiply(Plan& plan, int worker, const void* x, const void* panel,
                         float* y) noexcept {
  const SingleThreaded single_threaded;
  Plan::Worker& own = plan.workers[static_cast<size_t>(worker)];
  // oneDNN's memory objects have no const; sources are only read.
  const bool ok =
      dnnl_memory_set_data_handle(own.x.get(), const_cast<void*>(x)) == dnnl_success &&
      dnnl_memory_set_data_handle(own.panel.get(), const_cast<void*>(panel)) == dnnl_success &&
      dnnl_memory_set_data_handle(own.y.get(), y) == dnnl_success;
  return ok && dnnl_primitive_execute(plan.primitive.get(), own.stream.get(),
                                      static_cast<int>(own.arguments.size()),
                                      own.arguments.data()) == dnnl_success;
}

}  // namespace kvquant
