// Linear layers: y = x W^T for weights W [num_out, num_in], packed once into panels that both the
// matrix product of prefill (oneDNN, one single-threaded primitive per panel) and the
// matrix-vector product of decoding read. Results are the same at any number of threads.
//
// A panel holds 64 outputs (rows of W), num_in padded with zeros to a multiple of 32:
//
//   kF32     [num_in][64]       float
//   kBF16    [num_in / 2][64][2]  BFloat16, two inputs side by side
//   kInt8    [num_in / 32]      CodeGroup<8, 32>: w = scale * code + offset. Q8_0 blocks of GGUF
//                               files fit exactly
//   kInt8x2  [num_in / 16]      CodeGroup<8, 16>: two scales for 32 inputs
//   kInt6x2  [num_in / 16]      CodeGroup<6, 16>, for codes up to 63, as Q6_K has them
//   kInt5    [num_in / 32]      CodeGroup<5, 32>, for codes up to 31. Q5_0 and Q5_1 fit exactly
//   kInt4    [num_in / 32]      CodeGroup<4, 32>, for codes up to 15. Q4_0 and Q4_1 fit exactly
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/backend.h"
#include "base/buffer.h"
#include "base/half.h"
#include "base/threads.h"
#include "formats/precision.h"
#include "kvquant/tensor_view.h"

namespace kvquant {

enum class WeightType { kF32, kBF16, kInt8, kInt8x2, kInt6x2, kInt5, kInt4 };

// Whether weights are codes with scales and offsets.
constexpr bool has_groups(WeightType type) {
  return type != WeightType::kF32 && type != WeightType::kBF16;
}
constexpr int code_bits(WeightType type) {
  return type == WeightType::kInt4     ? 4
         : type == WeightType::kInt5   ? 5
         : type == WeightType::kInt6x2 ? 6
                                       : 8;
}

inline constexpr int64_t kPanelOutputs = 64;
inline constexpr int64_t kWeightGroup = 32;  // rows of weights in groups are multiples of it long

// Inputs that share a scale.
constexpr int64_t group_inputs(WeightType type) {
  const bool has_two = type == WeightType::kInt8x2 || type == WeightType::kInt6x2;
  return has_two ? kWeightGroup / 2 : kWeightGroup;
}

// Numbers of kBits, 1, 2, 4 or 8, for kInputs inputs and 64 outputs, in quads of inputs side by
// side, which is what 8-bit dot products add up. 8 / kBits quads share their four bytes, the first
// has the lowest bits.
template <int kBits, int64_t kInputs>
struct CodePlane {
  static constexpr int64_t kRowInputs = 32 / kBits;

  uint8_t rows[kInputs / kRowInputs][kPanelOutputs][4];  // [input / kRowInputs][output][input % 4]

  static constexpr int64_t row(int64_t input) { return input / kRowInputs; }
  static constexpr int shift(int64_t input) {
    return static_cast<int>(input % kRowInputs / 4) * kBits;
  }
  int get(int64_t input, int64_t output) const {
    return rows[row(input)][output][input % 4] >> shift(input) & ((1 << kBits) - 1);
  }
  // Requires: zero so far.
  void set(int64_t input, int64_t output, int value) {
    rows[row(input)][output][input % 4] |= static_cast<uint8_t>(value << shift(input));
  }
};
template <int64_t kInputs>
struct CodePlane<0, kInputs> {};

// Inputs of a panel that share a scale: codes, those of 5 or 6 bits as nibbles and, before them,
// what lies above, then scales and offsets: as kernels read them, from front to back.
template <int kBits, int64_t kInputs>
struct CodeGroup {
  static constexpr int kLowBits = kBits == 8 ? 8 : 4;
  static constexpr int kHighBits = kBits - kLowBits;

  [[no_unique_address]] CodePlane<kHighBits, kInputs> high;
  CodePlane<kLowBits, kInputs> low;
  Half scales[kPanelOutputs];
  Half offsets[kPanelOutputs];

  int code(int64_t input, int64_t output) const {
    int code = low.get(input, output);
    if constexpr (kHighBits > 0) code |= high.get(input, output) << kLowBits;
    return code;
  }
  // Requires: zero so far; code < 2^kBits.
  void set_code(int64_t input, int64_t output, int code) {
    low.set(input, output, code & ((1 << kLowBits) - 1));
    if constexpr (kHighBits > 0) high.set(input, output, code >> kLowBits);
  }
};
template <WeightType kType>
using GroupOf = CodeGroup<code_bits(kType), group_inputs(kType)>;
static_assert(sizeof(GroupOf<WeightType::kInt8>) == 2304);
static_assert(sizeof(GroupOf<WeightType::kInt8x2>) == 1280);
static_assert(sizeof(GroupOf<WeightType::kInt6x2>) == 1024);
static_assert(sizeof(GroupOf<WeightType::kInt5>) == 1536);
static_assert(sizeof(GroupOf<WeightType::kInt4>) == 1280);

// One row of a quantized weight matrix: num_in codes, and a scale and an offset for each 32 of them
// or each 16 (group_inputs).
struct QuantizedRow {
  std::span<uint8_t> codes;
  std::span<Half> scales;
  std::span<Half> offsets;
};

class PackedMatrix {
 public:
  // Writes row `row` of W as floats, for kF32 and kBF16.
  using RowReader = std::function<void(int64_t row, std::span<float> out)>;
  // Writes row `row` of W as codes, for types with groups; num_in is a multiple of 32.
  using QuantizedRowReader = std::function<void(int64_t row, QuantizedRow out)>;

  PackedMatrix() = default;
  // Readers are called from several threads at once and must not throw. Throws
  // std::invalid_argument on sizes below 1 (or num_in no multiple of 32 for pack_groups), or a type
  // that the other function packs, and OutOfMemory.
  static PackedMatrix pack(int64_t num_out, int64_t num_in, WeightType type,
                           const RowReader& reader, ThreadPool& pool);
  static PackedMatrix pack_groups(int64_t num_out, int64_t num_in, WeightType type,
                                  const QuantizedRowReader& reader, ThreadPool& pool);

  int64_t num_out() const { return num_out_; }
  int64_t num_in() const { return num_in_; }
  int64_t padded_in() const { return (num_in_ + kWeightGroup - 1) / kWeightGroup * kWeightGroup; }
  int64_t num_panels() const { return (num_out_ + kPanelOutputs - 1) / kPanelOutputs; }
  WeightType type() const { return type_; }
  int64_t num_bytes() const { return bytes_.num_bytes(); }
  int64_t panel_bytes() const;
  const std::byte* panel(int64_t index) const { return bytes_.data() + index * panel_bytes(); }

  // Row `row` as floats: an embedding look-up in a tied matrix. out has num_in elements.
  void read_row(int64_t row, std::span<float> out) const;

 private:
  int64_t num_out_ = 0;
  int64_t num_in_ = 0;
  WeightType type_ = WeightType::kF32;
  Buffer<std::byte> bytes_;
};

// What becomes of a product.
enum class Epilogue {
  kStore,  // out = y
  kAdd,    // out += y (residual)
};

class PanelGemm;

// Scratch that linear layers reuse from call to call: grows to the largest need, never shrinks. One
// caller at a time; matrices of any shape and type may share it.
struct LinearScratch {
  LinearScratch();
  ~LinearScratch();
  LinearScratch(LinearScratch&&) noexcept;
  LinearScratch& operator=(LinearScratch&&) noexcept;

  Buffer<std::byte> input;                    // x as the kernels read it, padded
  std::vector<Buffer<std::byte>> per_worker;  // panels of outputs, an unpacked panel
  std::unique_ptr<PanelGemm> gemm;            // oneDNN primitives by shape
};

// How and with what linear layers compute.
struct LinearContext {
  Precision precision;
  LinearScratch& scratch;
  ThreadPool& pool;
  Backend backend = best_backend();
};

// x [num_rows, w.num_in()], out [num_rows, w.num_out()], both with innermost stride 1.
// Precision of the products: kF32, and kBF16 on CPUs without bf16 dot products, keep x and w in
// f32. kBF16 rounds, depending on the weights and the number of rows,
//
//   groups, up to 12 rows  x to multiples of max|x| / 16256 of its 32-group; w is exact. The error
//                          is at most 2^-14 times the sum over groups of max|x| sum|w|, a tenth of
//                          what bf16 costs on random data. Groups below 2^-100 count as zero; a
//                          row with infinity or NaN becomes NaN.
//   groups, more rows      x and w to bf16
//   kBF16, one row         nothing
//   kBF16, several rows    x to bf16
//   kF32                   nothing
void linear(const PackedMatrix& w, TensorView<const float, 2> x, TensorView<float, 2> out,
            Epilogue epilogue, const LinearContext& context);

// The gated half of an MLP: out = silu(x Wgate^T) * (x Wup^T), fused per panel. The two matrices
// have one shape; their types may differ: then one of kF32 keeps both products in f32, and so do up
// to 12 rows unless both have groups.
void linear_swiglu(const PackedMatrix& gate, const PackedMatrix& up, TensorView<const float, 2> x,
                   TensorView<float, 2> out, const LinearContext& context);

}  // namespace kvquant
