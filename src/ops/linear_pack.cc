// Packing of weight matrices into the panels of linear.h.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "base/check.h"
#include "kvquant/error.h"
#include "ops/linear.h"

namespace kvquant {
namespace {

// Rows that are read before they are written side by side: a cache line of f32 outputs.
constexpr int64_t kStripRows = 16;

int64_t bytes_per_32(WeightType type) {  // of 32 inputs and 64 outputs
  constexpr int64_t kWeights = kWeightGroup * kPanelOutputs;
  switch (type) {
    case WeightType::kF32: return kWeights * sizeof(float);
    case WeightType::kBF16: return kWeights * sizeof(BFloat16);
    case WeightType::kInt8: return sizeof(GroupOf<WeightType::kInt8>);
    case WeightType::kInt8x2: return 2 * sizeof(GroupOf<WeightType::kInt8x2>);
    case WeightType::kInt6x2: return 2 * sizeof(GroupOf<WeightType::kInt6x2>);
    case WeightType::kInt5: return sizeof(GroupOf<WeightType::kInt5>);
    case WeightType::kInt4: return sizeof(GroupOf<WeightType::kInt4>);
  }
  return 0;
}

// Checks the sizes and returns the bytes of all panels.
int64_t checked_bytes(int64_t num_out, int64_t num_in, WeightType type) {
  check_arg(num_out >= 1 && num_in >= 1,
            fmt::format("linear: a weight matrix must have a row and a column, not {} x {}",
                        num_out, num_in));
  const int64_t groups = num_in / kWeightGroup + (num_in % kWeightGroup != 0);
  const int64_t panels = num_out / kPanelOutputs + (num_out % kPanelOutputs != 0);
  int64_t bytes = 0;
  if (__builtin_mul_overflow(groups, bytes_per_32(type), &bytes) ||
      __builtin_mul_overflow(bytes, panels, &bytes)) {
    throw OutOfMemory(fmt::format("out of memory: a weight matrix of {} x {}", num_out, num_in));
  }
  return bytes;
}

// out[i][row] for the rows of a strip, out's rows being 64 elements long.
template <class T>
void write_strip(const T* strip, int64_t length, int64_t num_rows, T* out) {
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t row = 0; row < num_rows; ++row) {
      out[i * kPanelOutputs + row] = strip[row * length + i];
    }
  }
}

void write_strip_bf16(const float* strip, int64_t length, int64_t num_rows, BFloat16* out) {
  for (int64_t in = 0; in < length; ++in) {
    for (int64_t row = 0; row < num_rows; ++row) {
      out[(in / 2 * kPanelOutputs + row) * 2 + in % 2] = to_bfloat16(strip[row * length + in]);
    }
  }
}

// Rows of 32-groups that are read before they are written side by side.
struct QuantizedStrip {
  Buffer<uint8_t> codes;
  Buffer<Half> scales, offsets;
};

// Writes the strip to outputs [column, column + num_rows) of a panel.
template <WeightType kType>
void write_groups(const QuantizedStrip& strip, int64_t num_in, int64_t num_rows, int64_t column,
                  std::byte* panel) {
  constexpr int64_t kInputs = group_inputs(kType);
  const int64_t num_groups = num_in / kInputs;
  auto* out = reinterpret_cast<GroupOf<kType>*>(panel);
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t from = row * num_groups + g;
      const uint8_t* codes = strip.codes.data() + from * kInputs;
      for (int64_t i = 0; i < kInputs; ++i) out[g].set_code(i, column + row, codes[i]);
      out[g].scales[column + row] = strip.scales.data()[from];
      out[g].offsets[column + row] = strip.offsets.data()[from];
    }
  }
}

decltype(&write_groups<WeightType::kInt8>) groups_writer(WeightType type) {
  switch (type) {
    case WeightType::kInt8x2: return write_groups<WeightType::kInt8x2>;
    case WeightType::kInt6x2: return write_groups<WeightType::kInt6x2>;
    case WeightType::kInt5: return write_groups<WeightType::kInt5>;
    case WeightType::kInt4: return write_groups<WeightType::kInt4>;
    default: return write_groups<WeightType::kInt8>;
  }
}

template <WeightType kType>
float grouped_weight(const std::byte* panel, int64_t in, int64_t column) {
  constexpr int64_t kInputs = group_inputs(kType);
  const auto& group = reinterpret_cast<const GroupOf<kType>*>(panel)[in / kInputs];
  return to_float(group.scales[column]) * static_cast<float>(group.code(in % kInputs, column)) +
         to_float(group.offsets[column]);
}

}  // namespace

int64_t PackedMatrix::panel_bytes() const {
  return padded_in() / kWeightGroup * bytes_per_32(type_);
}

PackedMatrix PackedMatrix::pack(int64_t num_out, int64_t num_in, WeightType type,
                                const RowReader& reader, ThreadPool& pool) {
  check_arg(!has_groups(type), "linear: weights in groups are packed by pack_groups");
  PackedMatrix packed;
  packed.bytes_ = Buffer<std::byte>(checked_bytes(num_out, num_in, type));
  packed.num_out_ = num_out;
  packed.num_in_ = num_in;
  packed.type_ = type;
  std::vector<Buffer<float>> strips;
  for (int i = 0; i < pool.num_threads(); ++i) strips.emplace_back(kStripRows * num_in);

  pool.parallel_for(packed.num_panels(), [&](int64_t index, int worker) {
    Buffer<float>& strip = strips[static_cast<size_t>(worker)];
    std::byte* panel = packed.bytes_.data() + index * packed.panel_bytes();
    const int64_t first = index * kPanelOutputs;
    const int64_t end = std::min(first + kPanelOutputs, num_out);
    for (int64_t row = first; row < end; row += kStripRows) {
      const int64_t num_rows = std::min(kStripRows, end - row);
      for (int64_t i = 0; i < num_rows; ++i) {
        reader(row + i,
               strip.span().subspan(static_cast<size_t>(i * num_in), static_cast<size_t>(num_in)));
      }
      if (type == WeightType::kF32) {
        write_strip(strip.data(), num_in, num_rows, reinterpret_cast<float*>(panel) + row - first);
      } else {
        write_strip_bf16(strip.data(), num_in, num_rows,
                         reinterpret_cast<BFloat16*>(panel) + 2 * (row - first));
      }
    }
  });
  return packed;
}

PackedMatrix PackedMatrix::pack_groups(int64_t num_out, int64_t num_in, WeightType type,
                                       const QuantizedRowReader& reader, ThreadPool& pool) {
  check_arg(has_groups(type), "linear: pack_groups packs weights in groups only");
  check_arg(
      num_in % kWeightGroup == 0,
      fmt::format("linear: num_in of weights in groups must be a multiple of 32, not {}", num_in));
  PackedMatrix packed;
  packed.bytes_ = Buffer<std::byte>(checked_bytes(num_out, num_in, type));
  packed.num_out_ = num_out;
  packed.num_in_ = num_in;
  packed.type_ = type;
  const auto write = groups_writer(type);
  const int64_t num_scales = num_in / group_inputs(type);
  std::vector<QuantizedStrip> strips(static_cast<size_t>(pool.num_threads()));
  for (auto& strip : strips) {
    strip.codes = Buffer<uint8_t>(kStripRows * num_in);
    strip.scales = Buffer<Half>(kStripRows * num_scales);
    strip.offsets = Buffer<Half>(kStripRows * num_scales);
  }

  pool.parallel_for(packed.num_panels(), [&](int64_t index, int worker) {
    QuantizedStrip& strip = strips[static_cast<size_t>(worker)];
    std::byte* panel = packed.bytes_.data() + index * packed.panel_bytes();
    const int64_t first = index * kPanelOutputs;
    const int64_t end = std::min(first + kPanelOutputs, num_out);
    for (int64_t row = first; row < end; row += kStripRows) {
      const int64_t num_rows = std::min(kStripRows, end - row);
      for (int64_t i = 0; i < num_rows; ++i) {
        const auto codes = static_cast<size_t>(num_in);
        const auto scales = static_cast<size_t>(num_scales);
        reader(row + i, {{strip.codes.data() + i * num_in, codes},
                         {strip.scales.data() + i * num_scales, scales},
                         {strip.offsets.data() + i * num_scales, scales}});
      }
      write(strip, num_in, num_rows, row - first, panel);
    }
  });
  return packed;
}

void PackedMatrix::read_row(int64_t row, std::span<float> out) const {
  if (row < 0 || row >= num_out_ || static_cast<int64_t>(out.size()) != num_in_) {
    throw std::invalid_argument(
        fmt::format("linear: row {} with {} elements of a weight matrix of {} x {}", row,
                    out.size(), num_out_, num_in_));
  }
  const std::byte* data = panel(row / kPanelOutputs);
  const int64_t column = row % kPanelOutputs;
  const auto* f32 = reinterpret_cast<const float*>(data) + column;
  const auto* bf16 = reinterpret_cast<const BFloat16*>(data) + 2 * column;
  for (int64_t in = 0; in < num_in_; ++in) {
    float& value = out[static_cast<size_t>(in)];
    switch (type_) {
      case WeightType::kF32: value = f32[in * kPanelOutputs]; break;
      case WeightType::kBF16: value = to_float(bf16[in / 2 * kPanelOutputs * 2 + in % 2]); break;
      case WeightType::kInt8: value = grouped_weight<WeightType::kInt8>(data, in, column); break;
      case WeightType::kInt8x2:
        value = grouped_weight<WeightType::kInt8x2>(data, in, column);
        break;
      case WeightType::kInt6x2:
        value = grouped_weight<WeightType::kInt6x2>(data, in, column);
        break;
      case WeightType::kInt5: value = grouped_weight<WeightType::kInt5>(data, in, column); break;
      case WeightType::kInt4: value = grouped_weight<WeightType::kInt4>(data, in, column); break;
    }
  }
}

}  // namespace kvquant
