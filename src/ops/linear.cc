#include "ops/linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "base/check.h"
#include "kvquant/error.h"
#include "ops/linear_panel.h"
#include "ops/panel_gemm.h"

namespace kvquant {
namespace {

// Which kernels multiply.
enum class Path {
  kReference,
  kVector,
  kVectorBf16,
  kVectorGroups,
  kMatrix,
  kMatrixBf16,
  kTileBf16,  // registers of AMX, any number of rows
};

// Up to so many rows the vector kernels beat oneDNN's matrix product: at 12 by 1.1 to 2.7 times,
// at 16 no longer for all types (2816 x 1024, one core of Zen 4).
constexpr int64_t kMostVectorRows = 12;
// Rows of a task of the matrix product, of oneDNN's and of AMX' (5450 tokens/s of prefill with 512,
// 4900 with 256; one model, two cores of Granite Rapids), the latter fewer where there are few
// panels: each thread is to have so many tasks. How rows are cut changes no result.
constexpr int64_t kRowBlock = 256, kTileRowBlock = 512, kTasksOfThread = 8;
// Rows are padded to multiples of this for oneDNN, which makes a kernel for each number of rows,
// and for AMX, whose registers have as many.
constexpr int64_t kRowMultiple = amxbf16::kTileRows;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One call of linear() or linear_swiglu(), where weights[0] is the gate and weights[1] is up.
struct Job {
  const PackedMatrix* weights[2];
  int num_weights;
  TensorView<const float, 2> x;
  TensorView<float, 2> out;
  Epilogue epilogue;
  int64_t num_threads;
  Path path;

  int64_t num_rows() const { return x.shape[0]; }
  int64_t num_in() const { return weights[0]->num_in(); }
  int64_t padded_in() const { return weights[0]->padded_in(); }
  bool is_onednn() const { return path == Path::kMatrix || path == Path::kMatrixBf16; }
  bool is_matrix() const { return is_onednn() || path == Path::kTileBf16; }
  bool is_bf16() const {
    return path == Path::kVectorBf16 || path == Path::kTileBf16 || path == Path::kMatrixBf16;
  }
  int64_t element_bytes() const { return is_bf16() ? sizeof(BFloat16) : sizeof(float); }
  int64_t input_row_bytes() const {
    if (path == Path::kVectorGroups) return padded_in() / kWeightGroup * sizeof(InputGroup);
    return padded_in() * element_bytes();
  }
  int64_t block_rows() const {
    if (!is_matrix()) return num_rows();
    if (is_onednn()) return std::min(num_rows(), kRowBlock);
    const int64_t num_panels = weights[0]->num_panels();
    int64_t rows = kTileRowBlock;
    while (rows > 64 && num_panels * num_rows() < kTasksOfThread * num_threads * rows) rows /= 2;
    return std::min(num_rows(), rows);
  }
  int64_t padded_block_rows() const {
    return is_matrix() ? round_up(block_rows(), kRowMultiple) : block_rows();
  }
  int64_t num_blocks() const { return (num_rows() + block_rows() - 1) / block_rows(); }
  bool all_are(WeightType type) const {
    return weights[0]->type() == type && weights[num_weights - 1]->type() == type;
  }
  bool all_have_groups() const {
    return has_groups(weights[0]->type()) && has_groups(weights[num_weights - 1]->type());
  }
  bool has(WeightType type) const {
    return weights[0]->type() == type || weights[num_weights - 1]->type() == type;
  }
  bool must_unpack(const PackedMatrix& w) const {
    return is_matrix() && w.type() != (is_bf16() ? WeightType::kBF16 : WeightType::kF32);
  }
};

Path choose_path(const Job& job, Precision precision, Backend backend) {
  if (backend == Backend::kReference) return Path::kReference;
  const bool bf16 = has_bf16_dots(backend) && precision == Precision::kBF16;
  if (job.num_rows() > kMostVectorRows) {
    if (!bf16 || job.has(WeightType::kF32)) return Path::kMatrix;
    return backend == Backend::kAmxBf16 ? Path::kTileBf16 : Path::kMatrixBf16;
  }
  if (bf16 && job.all_have_groups()) return Path::kVectorGroups;
  if (bf16 && job.all_are(WeightType::kBF16) && job.num_rows() > 1) {
    return backend == Backend::kAmxBf16 ? Path::kTileBf16 : Path::kVectorBf16;
  }
  return Path::kVector;
}

void check_shapes(const char* op, const Job& job) {
  const auto& x = job.x;
  const auto& out = job.out;
  const PackedMatrix& w = *job.weights[0];
  if (x.shape[0] < 0 || x.shape[1] != w.num_in()) {
    throw std::invalid_argument(fmt::format("{}: x must be [num_rows, {}], it is [{}, {}]", op,
                                            w.num_in(), x.shape[0], x.shape[1]));
  }
  if (out.shape[0] != x.shape[0] || out.shape[1] != w.num_out()) {
    throw std::invalid_argument(fmt::format("{}: out must be [{}, {}], it is [{}, {}]", op,
                                            x.shape[0], w.num_out(), out.shape[0], out.shape[1]));
  }
  if (x.stride[1] != 1 || out.stride[1] != 1) {
    throw std::invalid_argument(
        fmt::format("{}: the innermost strides of x and out must be 1, they are {} and {}", op,
                    x.stride[1], out.stride[1]));
  }
}

// The job's rows as its kernels read them. `data` may be x itself.
struct PackedInput {
  const std::byte* data;
  int64_t stride_bytes;
};

void pack_rows(const Job& job, int64_t first, int64_t end, std::byte* out) {
  if (job.path == Path::kTileBf16) {
    const PanelInput<float> rows{job.x.data + first * job.x.stride[0], job.x.stride[0],
                                 std::min(end, job.num_rows()) - first};
    return amxbf16::pack_tiles(rows, job.num_in(),
                               reinterpret_cast<BFloat16*>(out) + first * job.padded_in());
  }
  const int64_t row_bytes = job.input_row_bytes();
  for (int64_t row = first; row < end; ++row) {
    std::byte* target = out + row * row_bytes;
    if (row >= job.num_rows()) {
      std::memset(target, 0, static_cast<size_t>(row_bytes));
      continue;
    }
    const float* source = job.x.data + row * job.x.stride[0];
    if (job.path == Path::kVectorGroups) {
      avx512bf16::quantize_input(source, job.num_in(), reinterpret_cast<InputGroup*>(target));
    } else if (job.is_bf16()) {
      avx512bf16::round_to_bfloat16(source, job.num_in(), reinterpret_cast<BFloat16*>(target),
                                    job.padded_in());
    } else {
      const auto used = static_cast<size_t>(job.num_in()) * sizeof(float);
      std::memcpy(target, source, used);
      std::memset(target + used, 0, static_cast<size_t>(row_bytes) - used);
    }
  }
}

PackedInput pack_input(const Job& job, LinearScratch& scratch, ThreadPool& pool) {
  const bool takes_floats = job.path == Path::kReference || job.path == Path::kVector;
  if (takes_floats && job.num_in() == job.padded_in()) {
    return {reinterpret_cast<const std::byte*>(job.x.data),
            job.x.stride[0] * static_cast<int64_t>(sizeof(float))};
  }
  const int64_t rows = (job.num_blocks() - 1) * job.block_rows() + job.padded_block_rows();
  scratch.input.reserve_discarding(rows * job.input_row_bytes());
  std::byte* out = scratch.input.data();
  if (job.is_matrix()) {
    pool.parallel_for((rows + kRowMultiple - 1) / kRowMultiple, [&](int64_t task, int) {
      pack_rows(job, task * kRowMultiple, std::min(rows, (task + 1) * kRowMultiple), out);
    });
  } else {
    pack_rows(job, 0, rows, out);
  }
  return {out, job.input_row_bytes()};
}

// A worker's part of the scratch.
struct Workspace {
  float* products[2];   // [padded_block_rows][64] each
  std::byte* unpacked;  // a panel as the matrix product reads it
};

int64_t products_bytes(const Job& job) {
  return job.padded_block_rows() * kPanelOutputs * static_cast<int64_t>(sizeof(float));
}

void reserve_workspaces(const Job& job, LinearScratch& scratch, ThreadPool& pool) {
  const auto num_workers = static_cast<size_t>(pool.num_threads());
  if (scratch.per_worker.size() < num_workers) scratch.per_worker.resize(num_workers);
  bool unpacks = false;
  for (int i = 0; i < job.num_weights; ++i) unpacks |= job.must_unpack(*job.weights[i]);
  const int64_t panel = unpacks ? job.padded_in() * kPanelOutputs * job.element_bytes() : 0;
  const int64_t bytes = job.num_weights * products_bytes(job) + panel;
  for (size_t i = 0; i < num_workers; ++i) scratch.per_worker[i].reserve_discarding(bytes);
}

Workspace workspace_of(const Job& job, Buffer<std::byte>& buffer) {
  std::byte* data = buffer.data();
  std::byte* second = data + (job.num_weights - 1) * products_bytes(job);
  return {{reinterpret_cast<float*>(data), reinterpret_cast<float*>(second)},
          second + products_bytes(job)};
}

// oneDNN's primitives for whole blocks of rows and for the last one.
struct Plans {
  PanelGemm::Plan* block = nullptr;
  PanelGemm::Plan* last = nullptr;
};

Plans make_plans(const Job& job, LinearScratch& scratch, int num_workers) {
  if (!job.is_onednn()) return {};
  if (scratch.gemm == nullptr) scratch.gemm = std::make_unique<PanelGemm>();
  const auto type = job.is_bf16() ? PanelGemm::Type::kBF16 : PanelGemm::Type::kF32;
  const int64_t last = job.num_rows() - (job.num_blocks() - 1) * job.block_rows();
  return {&scratch.gemm->plan(type, job.padded_block_rows(), job.padded_in(), num_workers),
          &scratch.gemm->plan(type, round_up(last, kRowMultiple), job.padded_in(), num_workers)};
}

// A panel times a block of rows.
struct Task {
  PanelView panel;
  const std::byte* x;
  int64_t x_stride_bytes;
  int64_t num_rows;
  PanelGemm::Plan* plan;
  int worker;
};

template <class T>
PanelInput<T> input_of(const Task& task) {
  return {reinterpret_cast<const T*>(task.x), task.x_stride_bytes / static_cast<int64_t>(sizeof(T)),
          task.num_rows};
}

// Returns whether oneDNN succeeded.
bool multiply(const Job& job, const Task& task, bool unpack, std::byte* unpacked, float* y) {
  const PanelView& panel = task.panel;
  switch (job.path) {
    case Path::kReference: ref::panel_product(panel, input_of<float>(task), y); return true;
    case Path::kVector: simd::panel_product(panel, input_of<float>(task), y); return true;
    case Path::kVectorBf16:
      avx512bf16::panel_product(panel, input_of<BFloat16>(task), y);
      return true;
    case Path::kVectorGroups:
      avx512bf16::panel_product(panel, input_of<InputGroup>(task), y);
      return true;
    case Path::kMatrix:
      if (unpack) simd::unpack_panel(panel, reinterpret_cast<float*>(unpacked));
      break;
    case Path::kMatrixBf16:
    case Path::kTileBf16:
      if (unpack) avx512bf16::unpack_panel(panel, reinterpret_cast<BFloat16*>(unpacked));
      break;
  }
  const std::byte* weights = unpack ? unpacked : panel.data;
  if (job.path == Path::kTileBf16) {
    PanelInput<BFloat16> rows = input_of<BFloat16>(task);
    rows.num_rows = round_up(task.num_rows, amxbf16::kTileRows);
    amxbf16::panel_product({weights, panel.padded_in, WeightType::kBF16}, rows, y);
    return true;
  }
  return PanelGemm::multiply(*task.plan, task.worker, task.x, weights, y);
}

void store(const Job& job, const Workspace& workspace, const PanelOutput& out) {
  const float* first = workspace.products[0];
  const float* second = workspace.products[1];
  if (job.path == Path::kReference) {
    if (job.num_weights == 2) return ref::store_swiglu(first, second, out);
    return ref::store_panel(first, out, job.epilogue);
  }
  if (job.num_weights == 2) return simd::store_swiglu(first, second, out);
  simd::store_panel(first, out, job.epilogue);
}

void run(const Job& job, LinearScratch& scratch, ThreadPool& pool) {
  if (job.num_rows() == 0) return;
  const Plans plans = make_plans(job, scratch, pool.num_threads());
  reserve_workspaces(job, scratch, pool);
  const PackedInput input = pack_input(job, scratch, pool);
  const int64_t num_panels = job.weights[0]->num_panels();
  std::atomic<bool> failed{false};

  pool.parallel_for(num_panels * job.num_blocks(), [&](int64_t index, int worker) {
    const int64_t panel = index / job.num_blocks(), block = index % job.num_blocks();
    const int64_t first_row = block * job.block_rows();
    const int64_t num_rows = std::min(job.block_rows(), job.num_rows() - first_row);
    const Workspace workspace = workspace_of(job, scratch.per_worker[static_cast<size_t>(worker)]);
    for (int i = 0; i < job.num_weights; ++i) {
      const PackedMatrix& w = *job.weights[i];
      const Task task{.panel = {w.panel(panel), w.padded_in(), w.type()},
                      .x = input.data + first_row * input.stride_bytes,
                      .x_stride_bytes = input.stride_bytes,
                      .num_rows = num_rows,
                      .plan = num_rows < job.block_rows() ? plans.last : plans.block,
                      .worker = worker};
      if (!multiply(job, task, job.must_unpack(w), workspace.unpacked, workspace.products[i])) {
        failed.store(true, std::memory_order_relaxed);
        return;
      }
    }
    const int64_t first_column = panel * kPanelOutputs;
    store(job, workspace,
          {.data = job.out.data + first_row * job.out.stride[0] + first_column,
           .stride = job.out.stride[0],
           .num_rows = num_rows,
           .num_columns = std::min(kPanelOutputs, job.weights[0]->num_out() - first_column)});
  });
  if (failed.load()) throw DeviceError("linear: oneDNN failed to run a matrix product");
}

}  // namespace

LinearScratch::LinearScratch() = default;
LinearScratch::~LinearScratch() = default;
LinearScratch::LinearScratch(LinearScratch&&) noexcept = default;
LinearScratch& LinearScratch::operator=(LinearScratch&&) noexcept = default;

void linear(const PackedMatrix& w, TensorView<const float, 2> x, TensorView<float, 2> out,
            Epilogue epilogue, const LinearContext& context) {
  Job job{.weights = {&w, nullptr},
          .num_weights = 1,
          .x = x,
          .out = out,
          .epilogue = epilogue,
          .num_threads = context.pool.num_threads(),
          .path = Path::kReference};
  check_shapes("linear", job);
  job.path = choose_path(job, context.precision, context.backend);
  run(job, context.scratch, context.pool);
}

void linear_swiglu(const PackedMatrix& gate, const PackedMatrix& up, TensorView<const float, 2> x,
                   TensorView<float, 2> out, const LinearContext& context) {
  Job job{.weights = {&gate, &up},
          .num_weights = 2,
          .x = x,
          .out = out,
          .epilogue = Epilogue::kStore,
          .num_threads = context.pool.num_threads(),
          .path = Path::kReference};
  check_shapes("linear_swiglu", job);
  check_arg(gate.num_in() == up.num_in() && gate.num_out() == up.num_out(),
            "linear_swiglu: gate and up must have one shape");
  job.path = choose_path(job, context.precision, context.backend);
  run(job, context.scratch, context.pool);
}

}  // namespace kvquant
