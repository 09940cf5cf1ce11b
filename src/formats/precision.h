// The arithmetic of matrix products: bf16 inputs with f32 sums where the CPU has bf16 dot products,
// or f32 throughout.
#pragma once

namespace kvquant {

enum class Precision { kF32, kBF16 };

}  // namespace kvquant
