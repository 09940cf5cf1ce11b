// What a KvCache consists of: plans and pools that sequences share, the sequences, the prepared
// view.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cache/cache_view.h"
#include "cache/kv_cache.h"
#include "cache/layer_store.h"
#include "cache/side_parameters.h"

namespace kvquant {

struct KvCache::Impl {
  struct Sequence {
    std::vector<std::unique_ptr<LayerStore>> layers;
    Staging staging;
    LayerStore* unsettled = nullptr;  // the layer whose rows are in staging
    int64_t length = 0;               // in all layers
    bool is_broken = false;           // memory ran out amid a change
  };

  Impl(const KvShape& shape, const CacheSpec& spec, CacheMode mode, const RopeTable& rope,
       ThreadPool& threads, std::shared_ptr<const Calibration> calibration);
  SidePlan plan_side(KvSide side, const Codec& codec, int64_t num_tiles, int layer);
  const SideParameters& parameters_of(KvSide side, const Codec& codec, int layer);
  BlockPool* pool_of(int64_t block_bytes);
  Sequence& find(SequenceId id);
  Sequence& find_whole(SequenceId id);  // one that isn't broken
  void check_append(int64_t layer, const Sequence& sequence, TensorView<const float, 3> keys,
                    TensorView<const float, 3> values) const;
  void check_splice(const Sequence& sequence, const Sequence& from, int64_t first_token,
                    int64_t num_tokens) const;
  void settle(Sequence& sequence);
  template <class Fn>
  void change(Sequence& sequence, Fn&& fn);
  int64_t parameter_bytes() const;  // codebooks and what comes from a calibration

  KvShape shape;
  CacheSpec spec;  // with windows
  CacheMode mode;
  const RopeTable& rope;
  ThreadPool& threads;
  std::shared_ptr<const Calibration> calibration;  // null: none
  // By layer, side and codec; without a calibration all layers and both sides share them.
  std::map<std::tuple<int, KvSide, std::string>, SideParameters> parameters;
  MemoryAccount account;
  std::map<int64_t, BlockPool> pools;  // by bytes of a block
  std::vector<LayerPlan> plans;        // per layer; stores point into it
  std::map<SequenceId, Sequence> sequences;
  SequenceId next_id = 0;

  SequenceId view_sequence = -1;  // none is prepared
  int64_t view_layer = -1;
  CacheView view;
};

}  // namespace kvquant
