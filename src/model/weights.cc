#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <numeric>
#include <string>

#include "base/half.h"
#include "base/quote.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

// Attention would take such values for zeros and give plausible text.
[[noreturn]] void fail_not_finite(const std::string& name) {
  throw FormatError("tensor " + quote(name) + " holds values that are not finite");
}

bool all_finite(std::span<const float> values) {
  uint32_t found = 0;  // branch-free: every weight of a model passes here
  for (const float value : values) {
    found |= (std::bit_cast<uint32_t>(value) & 0x7F800000u) == 0x7F800000u;
  }
  return found == 0;
}

bool all_finite(std::span<const Half> values) {
  return std::all_of(values.begin(), values.end(),
                     [](Half value) { return std::isfinite(to_float(value)); });
}

// Several tensors of one width, stacked row by row into one matrix.
class Stack {
 public:
  Stack(const Checkpoint& checkpoint, std::vector<std::string> names)
      : checkpoint_(checkpoint), names_(std::move(names)) {
    first_rows_.push_back(0);
    for (const auto& name : names_) {
      infos_.push_back(checkpoint.info(name));
      first_rows_.push_back(first_rows_.back() + infos_.back().shape[0]);
    }
  }

  int64_t num_out() const { return first_rows_.back(); }
  int64_t num_in() const { return infos_[0].shape[1]; }

  WeightType weight_type(Precision precision, WeightStorage storage) const {
    if (storage == WeightStorage::kBF16) return WeightType::kBF16;
    const auto all = [&](auto predicate) {
      return std::all_of(infos_.begin(), infos_.end(), predicate);
    };
    const auto can_be_groups = [&](const WeightInfo& info) {
      return info.group_size > 0 && (info.groups_are_exact || precision == Precision::kBF16);
    };
    if (all(can_be_groups)) return groups_type();
    if (storage == WeightStorage::kInt8 && num_in() % kWeightGroup == 0) return WeightType::kInt8;
    const bool fits_bf16 = all([](const WeightInfo& info) { return info.type == "BF16"; });
    return precision == Precision::kBF16 || fits_bf16 ? WeightType::kBF16 : WeightType::kF32;
  }

  PackedMatrix pack(Precision precision, WeightStorage storage, ThreadPool& pool) const {
    const WeightType type = weight_type(precision, storage);
    std::atomic<int64_t> bad_row = -1;  // readers must not throw
    PackedMatrix packed;
    if (has_groups(type)) {
      packed = PackedMatrix::pack_groups(
          num_out(), num_in(), type,
          [&](int64_t row, QuantizedRow out) {
            const size_t part = part_of(row);
            read_groups(part, row - first_rows_[part], type, out);
            if (!all_finite(std::span<const Half>(out.scales)) ||
                !all_finite(std::span<const Half>(out.offsets)))
              bad_row = row;
          },
          pool);
    } else {
      packed = PackedMatrix::pack(
          num_out(), num_in(), type,
          [&](int64_t row, std::span<float> out) {
            const size_t part = part_of(row);
            checkpoint_.read_row(names_[part], row - first_rows_[part], out);
            if (!all_finite(std::span<const float>(out))) bad_row = row;
          },
          pool);
    }
    if (bad_row >= 0) fail_not_finite(names_[part_of(bad_row)]);
    return packed;
  }

 private:
  // The narrowest that holds the codes of all tensors. Requires: all can be groups.
  WeightType groups_type() const {
    int bits = 0;
    bool have_parts = false;
    for (const WeightInfo& info : infos_) {
      bits = std::max(bits, info.group_bits);
      have_parts |= info.group_size != kWeightGroup;
    }
    if (have_parts) return bits <= 6 ? WeightType::kInt6x2 : WeightType::kInt8x2;
    return bits <= 4 ? WeightType::kInt4 : bits <= 5 ? WeightType::kInt5 : WeightType::kInt8;
  }

  // As in the file, or floats rounded to groups.
  void read_groups(size_t part, int64_t row, WeightType type, QuantizedRow out) const {
    if (infos_[part].group_size == kWeightGroup || group_inputs(type) < kWeightGroup) {
      return checkpoint_.read_row_groups(names_[part], row, out);
    }
    std::vector<float> floats(static_cast<size_t>(num_in()));
    checkpoint_.read_row(names_[part], row, floats);
    quantize_to_groups(floats, out);
  }

  size_t part_of(int64_t row) const {
    const auto next = std::upper_bound(first_rows_.begin(), first_rows_.end(), row);
    return static_cast<size_t>(next - first_rows_.begin()) - 1;
  }

  const Checkpoint& checkpoint_;
  std::vector<std::string> names_;
  std::vector<WeightInfo> infos_;
  std::vector<int64_t> first_rows_;  // [names + 1]
};

std::vector<float> read_vector(const Checkpoint& checkpoint, const std::string& name) {
  std::vector<float> out(static_cast<size_t>(checkpoint.info(name).shape[0]));
  checkpoint.read_row(name, 0, out);
  if (!all_finite(std::span<const float>(out))) fail_not_finite(name);
  return out;
}

// How matrices are packed.
struct Packing {
  Precision precision;
  WeightStorage storage;
};

LayerWeights load_layer(const Checkpoint& checkpoint, int64_t layer, Packing packing,
                        ThreadPool& pool) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  const auto matrix = [&](std::initializer_list<const char*> names) {
    std::vector<std::string> full;
    for (const char* name : names) full.push_back(prefix + name + ".weight");
    return Stack(checkpoint, std::move(full)).pack(packing.precision, packing.storage, pool);
  };
  LayerWeights weights;
  weights.attention_norm = read_vector(checkpoint, prefix + "input_layernorm.weight");
  weights.qkv = matrix({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
  const ModelConfig& config = checkpoint.config();
  if (config.qkv_bias) {
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
      const auto bias = read_vector(checkpoint, prefix + "self_attn." + name + ".bias");
      weights.qkv_bias.insert(weights.qkv_bias.end(), bias.begin(), bias.end());
    }
  }
  if (config.qk_norm) {
    weights.query_norm = read_vector(checkpoint, prefix + "self_attn.q_norm.weight");
    weights.key_norm = read_vector(checkpoint, prefix + "self_attn.k_norm.weight");
  }
  weights.output = matrix({"self_attn.o_proj"});
  weights.mlp_norm = read_vector(checkpoint, prefix + "post_attention_layernorm.weight");
  weights.gate = matrix({"mlp.gate_proj"});
  weights.up = matrix({"mlp.up_proj"});
  weights.down = matrix({"mlp.down_proj"});
  return weights;
}

}  // namespace

int64_t ModelWeights::num_bytes() const {
  int64_t total = lm_head.num_bytes() + static_cast<int64_t>(final_norm.size() * sizeof(float));
  for (const auto& layer : layers) {
    for (const auto* matrix : {&layer.qkv, &layer.output, &layer.gate, &layer.up, &layer.down}) {
      total += matrix->num_bytes();
    }
    for (const auto* vector : {&layer.attention_norm, &layer.qkv_bias, &layer.query_norm,
                               &layer.key_norm, &layer.mlp_norm}) {
      total += static_cast<int64_t>(vector->size() * sizeof(float));
    }
  }
  return total;
}

ModelWeights load_weights(const Checkpoint& checkpoint, Precision precision, ThreadPool& pool,
                          WeightStorage storage) {
  const ModelConfig& config = checkpoint.config();
  ModelWeights weights;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    weights.layers.push_back(load_layer(checkpoint, layer, {precision, storage}, pool));
    checkpoint.release_pages();
  }
  weights.final_norm = read_vector(checkpoint, "model.norm.weight");
  const std::string head = config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  weights.lm_head = Stack(checkpoint, {head}).pack(precision, storage, pool);
  checkpoint.release_pages();
  return weights;
}

}  // namespace kvquant
