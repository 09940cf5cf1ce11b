// Matrix products of many rows with one packed panel of 64 outputs, by oneDNN: one single-threaded
// primitive per panel, so that results don't depend on the number of threads. Internal to ops.
#pragma once

#include <cstdint>
#include <memory>

namespace kvquant {

class PanelGemm {
 public:
  enum class Type { kF32, kBF16 };  // of x and the panel; sums are f32
  struct Plan;                      // a primitive for one shape, with memory for each worker

  PanelGemm();
  ~PanelGemm();
  PanelGemm(PanelGemm&&) noexcept;
  PanelGemm& operator=(PanelGemm&&) noexcept;

  // Finds or makes the primitive for x [num_rows, padded_in]; workers [0, num_workers) may use it
  // at once, until the next call of plan() with more workers. Throws DeviceError when oneDNN has no
  // fast kernel for it, OutOfMemory.
  Plan& plan(Type type, int64_t num_rows, int64_t padded_in, int num_workers);

  // y [num_rows, 64] = x times panel, all without gaps and in the layouts of linear.h (kF32 or
  // kBF16). Returns whether oneDNN succeeded.
  static bool multiply(Plan& plan, int worker, const void* x, const void* panel, float* y) noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvquant
