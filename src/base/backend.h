// The implementations an op may have, slowest first. Every op has kReference.
#pragma once

#include <vector>

namespace kvquant {

enum class Backend {
  kReference,   // plain loops, sums in double: the definition of correct
  kSimd,        // Google Highway, the best instruction set this CPU has
  kAvx512Bf16,  // intrinsics for the bf16 dot product (AVX-512 BF16 with VBMI)
  kAmxBf16,     // those, and for prefill the matrix registers of Intel AMX
};

// Whether the backend rounds to bf16 where it may.
constexpr bool has_bf16_dots(Backend backend) {
  return backend == Backend::kAvx512Bf16 || backend == Backend::kAmxBf16;
}

const char* backend_name(Backend backend);
std::vector<Backend> available_backends();  // those this machine can run; kReference always

// The last of them, or what the environment variable KVQUANT_BACKEND names (reference, simd,
// avx512bf16, amxbf16). Throws std::invalid_argument if that is not available here. Read once.
Backend best_backend();

}  // namespace kvquant
