// One layer of one sequence: its two sides, each dense or compressed, the exact tokens around the
// compressed ones, and the runs that the queries of the last chunk read. Positions:
//
//   [0, sink)  exact rows      [sink, sink + E)  encoded      tail  exact rows: window, then
//   staging
//
// As served the tail is [sink + E, length); strict, everything from sink on is encoded and the tail
// is a second, exact copy of the last tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/dense_side.h"
#include "cache/kv_cache.h"
#include "cache/nuq_side.h"
#include "cache/shared_rows.h"

namespace kvquant {

// One of the two.
struct SidePlan {
  std::optional<DensePlan> dense;
  std::optional<NuqPlan> nuq;
};

struct LayerPlan {
  SidePlan key, value;
  int64_t sink = 0;    // tokens
  int64_t recent = 0;  // tokens
  CacheMode mode = CacheMode::kStrict;
  int64_t max_lag = INT64_MAX;  // of the model: queries see no older tokens
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  const RopeTable* rope = nullptr;
  MemoryAccount* account = nullptr;

  int64_t row_size() const { return num_kv_heads * head_dim; }
  bool is_compressed() const { return key.nuq || value.nuq; }
  // Attention reads the stored tiles themselves.
  bool is_direct() const {
    return key.dense && value.dense && key.dense->type == value.dense->type;
  }
  // Attention reads the stored codes themselves.
  bool is_coded() const { return key.nuq && value.nuq; }
  // Keys are latents of rotated keys.
  bool has_latent_keys() const { return key.nuq && !key.nuq->latents.empty(); }
  // Attention reads the stored tiles of one side and the codes of the other themselves, where
  // tokens are encoded.
  bool is_half_coded() const {
    return (key.dense && value.nuq) || (has_latent_keys() && value.dense);
  }
  // Encoded tokens may stand at any position.
  bool is_relocatable() const { return is_coded() && !has_latent_keys(); }
};

// The last chunk's rows behind the sinks as fp16, [num_tokens, row_size]; one per sequence, because
// one layer at a time needs it.
struct Staging {
  Buffer<Half> key, value;
  int64_t memory_bytes() const { return key.num_bytes() + value.num_bytes(); }
};

enum class RunKind { kExact, kEncoded };  // exact: rows one behind the other in memory

struct RunPlan {
  RunKind kind = RunKind::kExact;
  int64_t first_position = 0;
  int64_t num_tokens = 0;
  int64_t min_lag = 0;
  int64_t max_lag = INT64_MAX;

  int64_t num_tiles() const { return (num_tokens + kTileTokens - 1) / kTileTokens; }
};

// What the runs of a layer depend on, in tokens.
struct LayerState {
  int64_t length = 0;
  int64_t num_encoded = 0;
  int64_t last_chunk = 0;  // of the last append
  int64_t pending = 0;     // in staging, the last ones
};

// The runs that the queries of the last chunk read; none is empty.
std::vector<RunPlan> plan_runs(const LayerPlan& plan, const LayerState& state);
// Of the first num_compressed tokens behind the sinks, those that the last query sees.
int64_t num_seen_compressed(const LayerPlan& plan, int64_t length, int64_t num_compressed);

// Scratch of one thread for fill_tile: a planar tile, cos and sin of its positions.
struct TileScratch {
  float* planar = nullptr;  // [head_dim][64]
  float* cos = nullptr;     // [head_dim / 2][64]
  float* sin = nullptr;
};

class LayerStore {
 public:
  explicit LayerStore(const LayerPlan& plan);
  LayerStore(const LayerStore&) = delete;
  LayerStore& operator=(const LayerStore&) = delete;
  // A store of the same tokens that shares all memory with this one until either writes. Requires a
  // settled store.
  std::unique_ptr<LayerStore> fork() const;

  const LayerPlan& plan() const { return *plan_; }
  int64_t length() const { return length_; }
  int64_t num_encoded() const;
  // Tokens that the last query reads in compressed form. What is encoded after it was read doesn't
  // count.
  int64_t num_read_compressed() const { return read_compressed_; }
  const DenseSide& dense_key() const { return *key_.dense; }
  const DenseSide& dense_value() const { return *value_.dense; }
  const NuqSide& coded_key() const { return *key_.nuq; }
  const NuqSide& coded_value() const { return *value_.nuq; }

  // Requires checked arguments and a settled store.
  void append(TensorView<const float, 3> keys, TensorView<const float, 3> values, Staging& staging,
              ThreadPool& pool);
  // Empties the staging buffer: as served, encodes what is old enough; keeps the tail.
  void settle(const Staging& staging, ThreadPool& pool);

  // Whole tiles of encoded tokens and nothing behind them: where tiles of another store fit.
  bool ends_with_tile() const {
    return pending_ == 0 && window_rows_ == 0 && length_ == plan_->sink + num_encoded() &&
           num_encoded() % kTileTokens == 0;
  }
  // Appends full encoded tiles of another store. Requires: a plan that is_relocatable,
  // ends_with_tile().
  void append_tiles(const LayerStore& from, int64_t first_tile, int64_t num_tiles);

  // Tokens from this one on can be forgotten.
  int64_t first_forgettable() const;
  bool can_truncate(int64_t length) const { return length >= first_forgettable(); }
  // Requires a settled store and can_truncate(length), truncate also prepare_truncate(length),
  // which throws OutOfMemory and changes nothing that can be read.
  void prepare_truncate(int64_t length);
  void truncate(int64_t length);

  // False when exact tokens that the last chunk's queries need are gone.
  bool can_view() const;
  std::vector<RunPlan> runs() const {
    return plan_runs(*plan_, {length_, num_encoded(), last_chunk_, pending_});
  }
  // The first rows of an exact run, row_size() numbers apart. Requires: a plan that is_coded.
  const Half* key_rows(const RunPlan& run, const Staging& staging) const {
    return exact_row(key_, staging.key, run.first_position);
  }
  const Half* value_rows(const RunPlan& run, const Staging& staging) const {
    return exact_row(value_, staging.value, run.first_position);
  }
  // Tile `tile` of a run, all heads, as f32 tiles: head h's keys at out + 2 h * 64 * head_dim, its
  // values behind them. From any thread.
  void fill_tile(const RunPlan& run, int64_t tile, const Staging& staging,
                 const TileScratch& scratch, float* out) const;
  // What plan.account would count of this store if it shared nothing.
  int64_t counted_bytes() const;
  // What it holds beside what plan.account counts: tables, key parameters.
  int64_t table_bytes() const;

  // Appends this layer's sections, whose names begin with `prefix`. Requires a settled store.
  void add_sections(const std::string& prefix, std::vector<StoredSection>& sections) const;
  // Reads them into an empty store of the same plan. Throws FormatError, OutOfMemory; then the
  // store can only be destroyed.
  void restore(const std::string& prefix, SectionReader& in);

 private:
  struct Side {
    std::optional<DenseSide> dense;
    std::optional<NuqSide> nuq;
    SharedRows sinks;   // [sink, row_size]
    SharedRows window;  // [window capacity, row_size]
  };

  void stage(Side& side, TensorView<const float, 3> x, Buffer<Half>& staging, ThreadPool& pool);
  void settle_side(Side& side, const Buffer<Half>& staging, int64_t num_leaving, ThreadPool& pool);
  Half* own_window(Side& side, int64_t first, int64_t num_kept, int64_t num_rows);
  const Half* exact_row(const Side& side, const Buffer<Half>& staging, int64_t position) const;
  void set_read_compressed(int64_t num_compressed) {
    read_compressed_ = num_seen_compressed(*plan_, length_, num_compressed);
  }
  bool may_have_encoded(int64_t num_encoded) const;
  void restore_rows(SharedRows& rows, int64_t num_rows, int64_t capacity, const std::string& name,
                    SectionReader& in);
  int64_t staging_first() const { return length_ - pending_; }
  int64_t window_first() const { return length_ - pending_ - window_rows_; }
  int64_t num_sinks() const { return length_ < plan_->sink ? length_ : plan_->sink; }

  const LayerPlan* plan_;
  Side key_, value_;
  int64_t length_ = 0;
  int64_t read_compressed_ = 0;
  int64_t last_chunk_ = 0;   // tokens of the last append
  int64_t pending_ = 0;      // tokens in staging, the last ones
  int64_t window_rows_ = 0;  // tokens in the window, right before them
};

}  // namespace kvquant
