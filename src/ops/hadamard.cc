#include "ops/hadamard.h"

#include <fmt/format.h>

#include <bit>

#include "base/check.h"
#include "base/walsh_hadamard.h"
#include "formats/kv_block.h"

namespace kvquant {
namespace {

void check_head_dim(int64_t head_dim) {
  check_arg(head_dim >= 8 && head_dim <= kMaxNuqHeadDim &&
                std::has_single_bit(static_cast<uint64_t>(head_dim)),
            fmt::format("hadamard: head_dim {} is not a power of two from 8 to {}", head_dim,
                        kMaxNuqHeadDim));
}

}  // namespace

void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim,
                   Backend backend) {
  check_head_dim(head_dim);
  if (backend == Backend::kReference) return ref::hadamard_rows(rows, stride, num_rows, head_dim);
  simd::hadamard_rows(rows, stride, num_rows, head_dim);
}

void hadamard_planar(float* planar, int64_t head_dim, Backend backend) {
  check_head_dim(head_dim);
  if (backend == Backend::kReference) return ref::hadamard_planar(planar, head_dim);
  simd::hadamard_planar(planar, head_dim);
}

namespace ref {

void hadamard_rows(float* rows, int64_t stride, int64_t num_rows, int64_t head_dim) noexcept {
  for (int64_t i = 0; i < num_rows; ++i) walsh_hadamard(rows + i * stride, 1, head_dim);
}

void hadamard_planar(float* planar, int64_t head_dim) noexcept {
  for (int64_t t = 0; t < kTileTokens; ++t) walsh_hadamard(planar + t, kTileTokens, head_dim);
}

}  // namespace ref
}  // namespace kvquant
