// KvCache: the keys and values of any number of sequences, stored as a CacheSpec says, and the
// views of them that attention reads. A sequence is, per layer,
//
//   [ sinks fp16 | encoded tiles in blocks | exact tail fp16 ]
//
// for compressed codecs, and blocks of dense tiles for fp16 and bf16 (keys after RoPE). Compressed
// codecs keep keys before RoPE, their sinks and tail too. Strict mode encodes every token as it
// arrives and keeps the last `recent` exactly as well (docs/formats.md has the modes). A layer may
// have one side of each kind; both are then read through the same runs.
//
// As served, a chunk stays exact in a staging buffer of its sequence until the next append to any
// layer of that sequence; then whole tiles are encoded while at least recent + 64 tokens are exact,
// so between two layers the exact tail holds at most recent + 63 tokens. Channel parameters of keys
// are fitted to what is exact when the first tile is encoded (strict: to the first chunk), and anew
// to a later chunk that leaves them (cache/key_segments.h).
//
// Not thread-safe: one thread calls, the pool does the work.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/threads.h"
#include "cache/stored_sequence.h"
#include "kvquant/spec.h"
#include "kvquant/tensor_view.h"
#include "ops/attend.h"
#include "ops/rope.h"
#include "quant/calibration.h"

namespace kvquant {

struct KvShape {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  // Of the model: a query reads so many tokens, its own included, sinks and recent ones among them;
  // 0: all. What no query will read any more is kept all the same.
  int64_t sliding_window = 0;
  std::vector<int64_t> layer_windows{};  // where layers differ, in place of it: [num_layers]

  int64_t window_of(int64_t layer) const {
    return layer_windows.empty() ? sliding_window : layer_windows[static_cast<size_t>(layer)];
  }
};

enum class CacheMode {
  kStrict,    // query i reads the codec's output for every token, itself included
  kAsServed,  // the chunk's own tokens and the tail are exact, history is compressed
};

// Windows of kAsServed when the spec says nothing (kStrict: 0).
inline constexpr int kServedSink = 4;
inline constexpr int kServedRecent = 64;

// The spec with the windows that `mode` implies where it says nothing: what results report as
// spec_resolved.
CacheSpec with_windows(const CacheSpec& spec, CacheMode mode);

// Tokens of a layer, decoded.
struct ReadTokens {
  int64_t first_position = 0;
  int64_t num_tokens = 0;
  std::vector<float> keys, values;  // [num_tokens, num_kv_heads, head_dim], keys after RoPE
};

// Layers whose history attention can't read as it is stored, because keys are compressed and values
// are not or both are dense and of two types: it is expanded to f32 at every step, which costs time
// and scratch.
int64_t num_expanded_layers(const CacheSpec& spec, int64_t num_layers);

class KvCache {
 public:
  using SequenceId = int64_t;

  // With a calibration (of this shape), codebooks, key ranges and outlier thresholds are its own,
  // and keys are rounded with feedback; without (null), codebooks are the heuristic ones and ranges
  // are fitted to each sequence. Throws std::invalid_argument when the spec or the calibration
  // doesn't fit the shape, or the spec isn't built. `rope` must outlive the cache.
  KvCache(const KvShape& shape, const CacheSpec& spec, CacheMode mode, const RopeTable& rope,
          ThreadPool& pool, std::shared_ptr<const Calibration> calibration = nullptr);
  ~KvCache();
  KvCache(KvCache&&) noexcept;

  // From now on OutOfMemory where blocks, outlier pages, sinks and windows of all sequences
  // together would have more bytes than this; 0: no limit, as at first. What is held already stays.
  // Pools take memory ahead of need, up to a slab (block_pool.h) per size of block.
  void set_max_bytes(int64_t max_bytes);

  const KvShape& shape() const;
  const CacheSpec& spec() const;  // with the windows that the mode implies
  CacheMode mode() const;
  const std::shared_ptr<const Calibration>& calibration() const;  // null: none

  SequenceId add_sequence();
  // A new sequence of the same tokens. The two share their memory; what one of them writes to (the
  // last, partly filled blocks, windows) it copies first. Ends a chunk as settle does. Throws
  // std::invalid_argument between the layers of a chunk.
  SequenceId fork(SequenceId id);
  // Appends tokens [first_token, first_token + num_tokens) of sequence `from` as they are encoded
  // there; they move to the positions at the end of `id`, as keys are stored before RoPE. Whole
  // blocks without outliers are shared, others are copied; nothing is encoded again. Ends a chunk
  // of both. Throws std::invalid_argument, changing nothing, unless in every layer can_splice, the
  // tokens are whole encoded tiles (first_token is sink + a multiple of 64) and `id`
  // ends with its sinks or such a tile, without exact tokens behind it.
  void splice(SequenceId id, SequenceId from, int64_t first_token, int64_t num_tokens);
  // All that is held of a sequence, as views that are valid until the next call on the cache. Ends
  // a chunk. Throws std::invalid_argument between the layers of a chunk.
  StoredSequence store(SequenceId id);
  // A new sequence of what `stored` holds, which a cache of the same shape, spec, mode and
  // calibration stored; its bytes are copied. What is appended then gives the same bits as behind
  // the original. Throws FormatError naming the section, OutOfMemory; there is no new sequence
  // then.
  SequenceId restore(const StoredSequence& stored);
  void drop(SequenceId id);  // frees what no fork shares
  // Forgets the tokens from `length` on; key parameters stay. Only tokens that are still exact can
  // be forgotten: throws std::invalid_argument, changing nothing, when a layer has compressed
  // tokens past `length` (as served the last `recent` are always exact), or `length` is more than
  // there is.
  void truncate(SequenceId id, int64_t length);
  // Requires a settled sequence.
  bool can_truncate(SequenceId id, int64_t length) const;
  int64_t length(SequenceId id) const;  // tokens that are in all layers

  // Appends num_new tokens to one layer: keys before RoPE and values, [num_new, num_kv_heads,
  // head_dim], num_new >= 1, innermost stride 1. Layers of a sequence are appended in step, one
  // chunk at a time: layer 0 first, the next layer with the same number of tokens. Nothing is
  // changed when it throws: FormatError naming layer and head when a value is NaN, infinite or too
  // large for its format; std::invalid_argument for shapes, order, or positions past the RoPE
  // table. OutOfMemory may come amid the work: then the sequence has the length it had before, but
  // can only be dropped; others are as they were.
  void append(int64_t layer, SequenceId id, TensorView<const float, 3> keys,
              TensorView<const float, 3> values);

  // Ends a chunk once its last layer was attended: what has left the tail is encoded, and the exact
  // copy of the chunk stops counting as memory of the cache. The next append does it, too.
  void settle(SequenceId id);

  // Whether a layer's encoded tokens may stand at any position: both sides are compressed, and keys
  // before RoPE.
  bool can_splice(int64_t layer) const;

  // What the queries of the last appended chunk read of one layer: runs per KV head. Valid until
  // the next call on the cache.
  std::span<const AttendRun> view(int64_t layer, SequenceId id, int64_t kv_head);
  // Makes `view` valid for all heads of (layer, sequence). Layers that compress values hand out
  // their codes as they lie, and their keys (codes: reads_codes), and so do those whose keys are
  // latents; where other keys are compressed and values are not, the whole history is expanded to
  // scratch, at every call. Throws
  // std::invalid_argument when it comes so late that tokens the queries must see exactly are
  // encoded already: prepare the view of a layer before the next layer is appended.
  void prepare_view(int64_t layer, SequenceId id);
  bool reads_codes(int64_t layer) const;
  // What the last query reads of a layer, sinks and window included, as attention would multiply
  // it; the same as a view tells. It costs what the sequence would take in f32; latents are
  // expanded. Throws std::invalid_argument as prepare_view does.
  ReadTokens read(int64_t layer, SequenceId id) const;
  // Of a layer whose values are latents, one per KV head; empty: they are none. Valid as long as
  // the cache.
  std::span<const LatentMap> value_latents(int64_t layer) const;

  // Allocated bytes of all sequences: codes, parameters, outliers, windows, half-empty
  // blocks, what forks share once, the exact copy of a chunk that is not settled yet, 8 bytes of
  // bookkeeping per block and page of each sequence, codebooks once; without scratch and what the
  // pools hold for later.
  int64_t memory_bytes() const;
  // What memory_bytes() would be if there were these sequences only and they shared nothing.
  int64_t memory_bytes(std::span<const SequenceId> ids) const;
  int64_t scratch_bytes() const;
  // The most that memory_bytes() + scratch_bytes() were at a time, since reset_peak if it was
  // called; at most too high by what tables and staging buffers grew since: those count as they are
  // now, so ask before sequences are dropped.
  int64_t peak_bytes() const;
  void reset_peak();
  // Tokens of the sequence that its last query reads in compressed form, in the layer with most (0:
  // a run that compressed nothing).
  int64_t num_compressed_tokens(SequenceId id) const;

 private:
  friend class DeviceCache;  // which has the same plans
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvquant
