#include "base/backend.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "base/device.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kvquant {
namespace {

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// The matrix registers must be asked for: a process that doesn't is stopped when it uses them.
bool has_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // of EDX of leaf 7
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBf16) == 0 || (edx & kTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Backend choose_backend() {
  auto backends = available_backends();
  const char* wanted = std::getenv("KVQUANT_BACKEND");
  if (wanted == nullptr || *wanted == '\0') return backends.back();
  for (const Backend backend : cuda_backends()) backends.push_back(backend);
  for (Backend backend : backends) {
    if (wanted == std::string(backend_name(backend))) return backend;
  }
  std::string names;
  for (Backend backend : backends) names += std::string(" ") + backend_name(backend);
  throw std::invalid_argument(std::string("KVQUANT_BACKEND=") + wanted +
                              " is not available here; choose one of:" + names);
}

}  // namespace

const char* backend_name(Backend backend) {
  switch (backend) {
    case Backend::kReference: return "reference";
    case Backend::kSimd: return "simd";
    case Backend::kAvx512Bf16: return "avx512bf16";
    case Backend::kAmxBf16: return "amxbf16";
    case Backend::kCudaEmulated: return "cuda-emulated";
    case Backend::kCuda: return "cuda";
  }
  return "unknown";
}

std::vector<Backend> available_backends() {
  std::vector<Backend> backends{Backend::kReference, Backend::kSimd};
  if (has_avx512_bf16()) {
    backends.push_back(Backend::kAvx512Bf16);
    if (has_amx_bf16()) backends.push_back(Backend::kAmxBf16);
  }
  return backends;
}

std::vector<Backend> cuda_backends() {
  std::vector<Backend> backends{Backend::kCudaEmulated};
  if (has_usable_device()) backends.push_back(Backend::kCuda);
  return backends;
}

Backend best_backend() {
  static const Backend best = choose_backend();
  return best;
}

}  // namespace kvquant
