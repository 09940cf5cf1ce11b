// The implementations an op may have, slowest first. Every op has kReference.
#pragma once

#include <vector>

namespace kvquant {

enum class Backend {
  kReference,   // plain loops, sums in double: the definition of correct
  kSimd,        // Google Highway, the best instruction set this CPU has
  kAvx512Bf16,  // intrinsics for the bf16 dot product (AVX-512 BF16 with VBMI)
  kAmxBf16,     // those, and for prefill the matrix registers of Intel AMX
  // For tests and comparisons; of ops without such kernels they mean kSimd.
  kCudaEmulated,  // the CUDA kernels, run by the CPU: slow
  kCuda,          // on GPU 0; memory of the host is copied there and back
};

// Whether the backend rounds to bf16 where it may.
constexpr bool has_bf16_dots(Backend backend) {
  return backend == Backend::kAvx512Bf16 || backend == Backend::kAmxBf16;
}

constexpr bool is_cuda(Backend backend) {
  return backend == Backend::kCudaEmulated || backend == Backend::kCuda;
}

const char* backend_name(Backend backend);
std::vector<Backend> available_backends();  // those this CPU can run; kReference always
std::vector<Backend> cuda_backends();       // kCudaEmulated, and kCuda where there is a GPU

// The last of this CPU's, or what the environment variable KVQUANT_BACKEND names (reference, simd,
// avx512bf16, amxbf16, cuda-emulated, cuda). Throws std::invalid_argument if that is not available
// here. Read once.
Backend best_backend();

}  // namespace kvquant
