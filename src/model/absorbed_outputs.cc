#include "model/absorbed_outputs.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>

#include "base/check.h"
#include "model/weight_groups.h"

namespace kvquant {
namespace {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Row `row` of W_o', out [num_q_heads * width].
void absorb_row(const PackedMatrix& output, std::span<const LatentMap> maps, int64_t row,
                std::span<float> out) {
  std::vector<float> weights(static_cast<size_t>(output.num_in()));
  output.read_row(row, weights);
  const LatentMap& first = maps[0];
  const int64_t num_q_heads = output.num_in() / first.head_dim;
  const int64_t group = num_q_heads / std::ssize(maps);
  std::fill(out.begin(), out.end(), 0.0f);
  for (int64_t head = 0; head < num_q_heads; ++head) {
    const LatentMap& map = maps[static_cast<size_t>(head / group)];
    const Eigen::Map<const RowMatrix> decode(map.decode, map.rank, map.head_dim);
    const Eigen::Map<const Eigen::VectorXf> of_head(weights.data() + head * map.head_dim,
                                                    map.head_dim);
    Eigen::Map<Eigen::VectorXf>(out.data() + head * map.width, map.rank).noalias() =
        decode * of_head;
  }
}

bool is_same(const std::weak_ptr<const Calibration>& a,
             const std::shared_ptr<const Calibration>& b) {
  return !a.owner_before(b) && !b.owner_before(a);
}

}  // namespace

PackedMatrix absorb_decoders(const PackedMatrix& output, std::span<const LatentMap> maps,
                             Precision precision, ThreadPool& pool) {
  const int64_t head_dim = maps.empty() ? 1 : maps[0].head_dim;
  check_arg(!maps.empty() && output.num_in() % (head_dim * std::ssize(maps)) == 0,
            fmt::format("absorb_decoders: an output projection of {} inputs doesn't fit {} KV "
                        "heads of {} channels",
                        output.num_in(), maps.size(), head_dim));
  const int64_t num_in = output.num_in() / head_dim * maps[0].width;
  if (precision != Precision::kF32 && has_groups(output.type()) && num_in % kWeightGroup == 0) {
    return PackedMatrix::pack_groups(
        output.num_out(), num_in, WeightType::kInt8,
        [&](int64_t row, QuantizedRow out) {
          std::vector<float> floats(static_cast<size_t>(num_in));
          absorb_row(output, maps, row, floats);
          quantize_to_groups(floats, out);
        },
        pool);
  }
  const WeightType type = precision == Precision::kF32 ? WeightType::kF32 : WeightType::kBF16;
  return PackedMatrix::pack(
      output.num_out(), num_in, type,
      [&](int64_t row, std::span<float> out) { absorb_row(output, maps, row, out); }, pool);
}

const PackedMatrix* AbsorbedOutputs::find_or_make(const Layer& layer, const KvCache& cache,
                                                  ThreadPool& pool) {
  const std::span<const LatentMap> maps = cache.value_latents(layer.cache);
  if (maps.empty()) return nullptr;
  const Codec& codec = cache.spec().value_of(static_cast<int>(layer.cache));
  for (const Entry& entry : entries_) {
    if (entry.layer == layer.model && entry.cache_layer == layer.cache &&
        entry.transforms == codec.transforms && entry.waterfill_bits == codec.waterfill_bits &&
        is_same(entry.calibration, cache.calibration())) {
      return &entry.matrix;
    }
  }
  entries_.remove_if([](const Entry& entry) {  // nobody can ask for these any more
    return entry.calibration.expired() && !is_same(entry.calibration, nullptr);
  });
  entries_.push_back({layer.model, layer.cache, codec.transforms, codec.waterfill_bits,
                      cache.calibration(),
                      absorb_decoders(layer.output, maps, layer.precision, pool)});
  return &entries_.back().matrix;
}

int64_t AbsorbedOutputs::num_bytes() const {
  int64_t total = 0;
  for (const Entry& entry : entries_) total += entry.matrix.num_bytes();
  return total;
}

}  // namespace kvquant
