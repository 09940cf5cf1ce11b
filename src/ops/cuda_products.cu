#include "ops/cuda_products.cuh"

#include "kvquant/error.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#endif

namespace kvquant::cuda {

#if __has_include(<cublasLt.h>)
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(std::string("cublasLt: ") + what + ": status " +
                    std::to_string(static_cast<int>(status)));
}

// The library's functions that are used, by the types of its header.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) describe;
  decltype(&cublasLtMatmulDescDestroy) forget;
  decltype(&cublasLtMatmulDescSetAttribute) set;
  decltype(&cublasLtMatrixLayoutCreate) lay_out;
  decltype(&cublasLtMatrixLayoutDestroy) forget_layout;
  decltype(&cublasLtMatmulPreferenceCreate) prefer;
  decltype(&cublasLtMatmulPreferenceDestroy) forget_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
};

template <class Fn>
void find(void* library, const char* name, Fn& fn) {
  fn = reinterpret_cast<Fn>(dlsym(library, name));
  if (fn == nullptr) throw DeviceError(std::string("cublasLt: the library has no ") + name);
}

Library open_library() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW);  // for good
  if (library == nullptr) {
    throw DeviceError(name +
                      " was not found: install nvidia-cublas and name its lib folder in "
                      "LD_LIBRARY_PATH");
  }
  Library out{};
  find(library, "cublasLtCreate", out.create);
  find(library, "cublasLtDestroy", out.destroy);
  find(library, "cublasLtMatmul", out.matmul);
  find(library, "cublasLtMatmulDescCreate", out.describe);
  find(library, "cublasLtMatmulDescDestroy", out.forget);
  find(library, "cublasLtMatmulDescSetAttribute", out.set);
  find(library, "cublasLtMatrixLayoutCreate", out.lay_out);
  find(library, "cublasLtMatrixLayoutDestroy", out.forget_layout);
  find(library, "cublasLtMatmulPreferenceCreate", out.prefer);
  find(library, "cublasLtMatmulPreferenceDestroy", out.forget_preference);
  find(library, "cublasLtMatmulPreferenceSetAttribute", out.set_preference);
  find(library, "cublasLtMatmulAlgoGetHeuristic", out.choose);
  return out;
}

template <class Handle, auto kMember>
class Owned {
 public:
  explicit Owned(const Library& library) : library_(library) {}
  ~Owned() {
    if (handle != nullptr) (library_.*kMember)(handle);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Handle handle = nullptr;

 private:
  const Library& library_;
};
using Layout = Owned<cublasLtMatrixLayout_t, &Library::forget_layout>;

// All that an algorithm is chosen by. One algorithm for both epilogues: they differ in beta alone.
struct ProductShape {
  bool is_bf16 = false;
  int64_t num_out = 0, num_in = 0, num_rows = 0, x_stride = 0, out_stride = 0;
  std::array<uint32_t, 3> alignments{};  // bytes, of weights, x and out

  auto operator<=>(const ProductShape&) const = default;
};

// The largest power of two, up to what algorithms ask for at most, that divides the address.
uint32_t alignment_of(const void* data) {
  constexpr uintptr_t kMost = 256;
  const auto address = reinterpret_cast<uintptr_t>(data);
  return static_cast<uint32_t>((address | kMost) & (~(address | kMost) + 1));
}

ProductShape shape_of(const CudaProduct& product, const void* weights, const void* x) {
  return {.is_bf16 = product.bf16_weights != nullptr,
          .num_out = product.num_out,
          .num_in = product.num_in,
          .num_rows = product.num_rows,
          .x_stride = product.x_stride,
          .out_stride = product.out_stride,
          .alignments = {alignment_of(weights), alignment_of(x), alignment_of(product.out)}};
}

struct Plan {
  explicit Plan(const Library& library)
      : weights(library), x(library), out(library), product(library) {}

  Layout weights, x, out;
  Owned<cublasLtMatmulDesc_t, &Library::forget> product;
  cublasLtMatmulAlgo_t algorithm{};
};

}  // namespace

struct Products::Impl {
  explicit Impl(CudaDevice& device) : library(open_library()), workspace(device, kWorkspaceBytes) {
    check_blas(library.create(&handle), "starting");
  }
  ~Impl() { library.destroy(handle); }

  void multiply(const CudaProduct& product, const DeviceStream& stream);
  const Plan& plan_for(const ProductShape& shape);
  void describe(const ProductShape& shape, Plan& plan) const;
  void choose(const ProductShape& shape, Plan& plan) const;

  Library library;
  cublasLtHandle_t handle = nullptr;
  DeviceArray<std::byte> workspace;
  std::map<ProductShape, std::unique_ptr<Plan>> plans;  // as many as there are shapes and chunks
};

// The library's matrices are column by column, so out^T [num_out, num_rows] = W x^T is asked for.
void Products::Impl::multiply(const CudaProduct& product, const DeviceStream& stream) {
  const bool is_bf16 = product.bf16_weights != nullptr;
  const void* x = is_bf16 ? static_cast<const void*>(product.bf16_x) : product.x;
  const void* weights = is_bf16 ? static_cast<const void*>(product.bf16_weights) : product.weights;
  const Plan& plan = plan_for(shape_of(product, weights, x));
  const float alpha = 1, beta = product.epilogue == Epilogue::kAdd ? 1.0f : 0.0f;
  check_blas(library.matmul(handle, plan.product.handle, &alpha, weights, plan.weights.handle, x,
                            plan.x.handle, &beta, product.out, plan.out.handle, product.out,
                            plan.out.handle, &plan.algorithm, workspace.data(),
                            static_cast<size_t>(workspace.num_bytes()),
                            static_cast<cudaStream_t>(stream.handle())),
             "a product");
}

const Plan& Products::Impl::plan_for(const ProductShape& shape) {
  auto& plan = plans[shape];
  if (!plan) {
    auto made = std::make_unique<Plan>(library);
    describe(shape, *made);
    choose(shape, *made);
    plan = std::move(made);
  }
  return *plan;
}

void Products::Impl::describe(const ProductShape& shape, Plan& plan) const {
  const cudaDataType_t type = shape.is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  const auto num_out = static_cast<uint64_t>(shape.num_out);
  const auto num_in = static_cast<uint64_t>(shape.num_in);
  const auto num_rows = static_cast<uint64_t>(shape.num_rows);
  check_blas(library.lay_out(&plan.weights.handle, type, num_in, num_out, shape.num_in), "weights");
  check_blas(library.lay_out(&plan.x.handle, type, num_in, num_rows, shape.x_stride), "inputs");
  check_blas(library.lay_out(&plan.out.handle, CUDA_R_32F, num_out, num_rows, shape.out_stride),
             "outputs");
  check_blas(library.describe(&plan.product.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
  const cublasOperation_t turned = CUBLAS_OP_T;
  check_blas(library.set(plan.product.handle, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned)),
             "a product");
}

void Products::Impl::choose(const ProductShape& shape, Plan& plan) const {
  Owned<cublasLtMatmulPreference_t, &Library::forget_preference> preference(library);
  check_blas(library.prefer(&preference.handle), "a preference");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check_blas(library.set_preference(preference.handle, what, &value, sizeof(value)),
               "a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<size_t>(workspace.num_bytes()));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.alignments[0]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.alignments[1]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.alignments[2]);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.alignments[2]);
  cublasLtMatmulHeuristicResult_t found{};
  int num_found = 0;
  check_blas(
      library.choose(handle, plan.product.handle, plan.weights.handle, plan.x.handle,
                     plan.out.handle, plan.out.handle, preference.handle, 1, &found, &num_found),
      "choosing an algorithm");
  check_blas(num_found == 1 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED, "choosing an algorithm");
  plan.algorithm = found.algo;
}

void Products::prepare(CudaDevice& device) {
  if (!impl_) impl_ = std::make_unique<Impl>(device);
}

void Products::multiply(CudaDevice& device, const CudaProduct& product,
                        const DeviceStream& stream) {
  prepare(device);
  impl_->multiply(product, stream);
}

#else

struct Products::Impl {};

void Products::prepare(CudaDevice&) {
  throw DeviceError(
      "matrix products on GPUs: this program was built without cuBLASLt; configure it where "
      "cublasLt.h (nvidia-cublas) is beside nvcc");
}

void Products::multiply(CudaDevice& device, const CudaProduct&, const DeviceStream&) {
  prepare(device);
}

#endif

Products::Products() = default;
Products::~Products() = default;

}  // namespace kvquant::cuda
