#include "ops/cuda_products.cuh"

#include "kvquant/error.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <dlfcn.h>

#include <string>
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

}  // namespace

struct Products::Impl {
  explicit Impl(CudaDevice& device) : library(open_library()), workspace(device, kWorkspaceBytes) {
    check_blas(library.create(&handle), "starting");
  }
  ~Impl() { library.destroy(handle); }

  void multiply(const CudaProduct& product, const DeviceStream& stream);

  Library library;
  cublasLtHandle_t handle = nullptr;
  DeviceArray<std::byte> workspace;
};

// The library's matrices are column by column, so out^T [num_out, num_rows] = W x^T is asked for.
void Products::Impl::multiply(const CudaProduct& product, const DeviceStream& stream) {
  const bool is_bf16 = product.bf16_weights != nullptr;
  const void* x = is_bf16 ? static_cast<const void*>(product.bf16_x) : product.x;
  const void* weights = is_bf16 ? static_cast<const void*>(product.bf16_weights) : product.weights;
  const cudaDataType_t type = is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  const auto num_out = static_cast<uint64_t>(product.num_out);
  const auto num_in = static_cast<uint64_t>(product.num_in);
  const auto num_rows = static_cast<uint64_t>(product.num_rows);
  Layout a(library), b(library), c(library);
  check_blas(library.lay_out(&a.handle, type, num_in, num_out, product.num_in), "weights");
  check_blas(library.lay_out(&b.handle, type, num_in, num_rows, product.x_stride), "inputs");
  check_blas(library.lay_out(&c.handle, CUDA_R_32F, num_out, num_rows, product.out_stride),
             "outputs");
  Owned<cublasLtMatmulDesc_t, &Library::forget> described(library);
  check_blas(library.describe(&described.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
  const cublasOperation_t turned = CUBLAS_OP_T;
  check_blas(library.set(described.handle, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned)),
             "a product");
  Owned<cublasLtMatmulPreference_t, &Library::forget_preference> preference(library);
  check_blas(library.prefer(&preference.handle), "a preference");
  const auto most = static_cast<size_t>(workspace.num_bytes());
  check_blas(library.set_preference(preference.handle, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                    &most, sizeof(most)),
             "a preference");
  cublasLtMatmulHeuristicResult_t found{};
  int num_found = 0;
  check_blas(library.choose(handle, described.handle, a.handle, b.handle, c.handle, c.handle,
                            preference.handle, 1, &found, &num_found),
             "choosing an algorithm");
  const float alpha = 1, beta = product.epilogue == Epilogue::kAdd ? 1.0f : 0.0f;
  check_blas(library.matmul(handle, described.handle, &alpha, weights, a.handle, x, b.handle, &beta,
                            product.out, c.handle, product.out, c.handle, &found.algo,
                            workspace.data(), most, static_cast<cudaStream_t>(stream.handle())),
             "a product");
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
