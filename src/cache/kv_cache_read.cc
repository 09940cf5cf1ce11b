// What a cache holds of a layer, decoded: for those who can't attend to codes.
#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "cache/kv_cache_impl.h"

namespace kvquant {
namespace {

// A tile of a run, from f32 tiles of all heads (LayerStore::fill_tile) into rows of `out`.
class TileReader {
 public:
  TileReader(const LayerStore& store, const Staging& staging, ReadTokens& out)
      : store_(store), staging_(staging), out_(out) {}

  int64_t tile_size() const { return kTileTokens * store_.plan().head_dim; }
  int64_t scratch_size() const { return (2 + 2 * store_.plan().num_kv_heads) * tile_size(); }

  void read(const RunPlan& run, int64_t tile, float* scratch) const {
    float* const tiles = scratch + 2 * tile_size();
    store_.fill_tile(run, tile, staging_,
                     {scratch, scratch + tile_size(), scratch + tile_size() + tile_size() / 2},
                     tiles);
    const int64_t first = tile * kTileTokens;
    const int64_t count = std::min<int64_t>(kTileTokens, run.num_tokens - first);
    const int64_t last = store_.length() - 1;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t position = run.first_position + first + t, lag = last - position;
      if (run.min_lag <= lag && lag < run.max_lag) copy_token(tiles, t, position);
    }
  }

 private:
  void copy_token(const float* tiles, int64_t token, int64_t position) const {
    const int64_t heads = store_.plan().num_kv_heads, head_dim = store_.plan().head_dim;
    const int64_t row = (position - out_.first_position) * heads * head_dim;
    for (int64_t head = 0; head < heads; ++head) {
      const float* const key = tiles + 2 * head * tile_size();
      const float* const value = key + tile_size();
      for (int64_t c = 0; c < head_dim; ++c) {
        const auto at = static_cast<size_t>(row + head * head_dim + c);
        out_.keys[at] = key[key_index(token, c)];
        out_.values[at] = value[value_index(token, c, head_dim)];
      }
    }
  }

  const LayerStore& store_;
  const Staging& staging_;
  ReadTokens& out_;
};

}  // namespace

ReadTokens KvCache::read(int64_t layer, SequenceId id) const {
  check_arg(0 <= layer && layer < impl_->shape.num_layers,
            fmt::format("cache: layer {} of {}", layer, impl_->shape.num_layers));
  const Impl::Sequence& sequence = impl_->find_whole(id);
  const LayerStore& store = *sequence.layers[static_cast<size_t>(layer)];
  check_arg(store.can_view(),
            fmt::format("cache: layer {} must be read before the next layer is appended", layer));
  ReadTokens out;
  out.first_position = std::max<int64_t>(0, store.length() - store.plan().max_lag);
  out.num_tokens = store.length() - out.first_position;
  const auto size = static_cast<size_t>(out.num_tokens * store.plan().row_size());
  out.keys.resize(size);
  out.values.resize(size);
  const TileReader reader(store, sequence.staging, out);
  Buffer<float> scratch(impl_->threads.num_threads() * reader.scratch_size());
  for (const RunPlan& run : store.runs()) {
    impl_->threads.parallel_for(run.num_tiles(), [&](int64_t tile, int worker) {
      reader.read(run, tile, scratch.data() + worker * reader.scratch_size());
    });
  }
  return out;
}

}  // namespace kvquant
