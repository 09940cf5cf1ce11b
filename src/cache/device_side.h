// The encoded tokens of one side of one layer of one sequence in the memory of a device: the
// blocks, pages and bytes of NuqSide, written by kernels. The host keeps addresses and counts only,
// and the ranges of key channels that are fitted to the sequence.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/threads.h"
#include "cache/device_table.h"
#include "cache/nuq_side.h"

namespace kvquant {

// What all sequences share of one side of one layer; addresses of the device but for `host`.
struct DeviceNuqPlan {
  const NuqPlan* host = nullptr;
  const NuqCodebook* codebooks = nullptr;      // as many as the host's
  const RoundingFeedback* feedback = nullptr;  // one per KV head; null: none
  const float* ranges = nullptr;               // calibrated keys: [4][row_size]; null: fitted
  const Half* half_ranges = nullptr;           // the same, as attention reads them
  const CudaLatentMap* maps = nullptr;         // one per KV head; null: no latents
  const float* cos = nullptr;                  // of latents of keys: the tables of RoPE
  const float* sin = nullptr;
  std::vector<CudaLatents> latents{};  // the same, as attention reads them
  const NuqCodebook* bands = nullptr;  // of latents of 4 and of 2 bits, in bands
};

// Scratch of appends on a device, of any side; grows to the largest need.
struct DeviceEncodeScratch {
  explicit DeviceEncodeScratch(CudaDevice& device);
  int64_t num_bytes() const;

  DeviceArray<float> latents;
  DeviceArray<int64_t> positions;
  DeviceArray<float> ranges;  // of keys, as f32
  DeviceArray<float> scales, zeros;
  DeviceArray<uint8_t> marks;
  DeviceArray<uint64_t> masks;
  DeviceArray<int32_t> counts;
  DeviceArray<CudaFitTarget> targets;
  DeviceArray<CudaDenseTarget> dense_targets;
  DeviceArray<CudaEncodeJob> jobs;
  DeviceArray<CudaOutlierJob> outlier_jobs;
  DeviceArray<OutlierPage*> pages;
};

// With what appends work.
struct DeviceEncoder {
  CudaDevice& device;
  DeviceArena& arena;
  DeviceEncodeScratch& scratch;
  ThreadPool& pool;
};

// Rows to be encoded: fp16 numbers as f32 on the device, transformed, [num_rows, input_size]
// without gaps, and, if ranges may be fitted to them, the same on the host.
struct DeviceRows {
  const float* rows = nullptr;
  int64_t num_rows = 0;
  std::optional<HalfRows> host{};
};

class DeviceNuqSide {
 public:
  explicit DeviceNuqSide(const DeviceNuqPlan& plan);
  // Copies share blocks and pages until they write, or own().
  void own(CudaDevice& device, DeviceArena& arena);
  int64_t held_bytes() const;  // of blocks, pages, tables and ranges, whoever shares them

  // Ranges are fitted to rows on the host: keys without calibration.
  bool needs_host_rows() const {
    return plan_->host->side == KvSide::kKey && plan_->host->ranges.empty();
  }
  // Rows [num_rows, input_size], the first that of token first_token, before they come here:
  // rotated in place where the codec says so, those of latents of keys by RoPE.
  void transform(float* rows, int64_t num_rows, int64_t first_token,
                 const DeviceEncoder& with) const;
  bool is_fitted() const { return !needs_host_rows() || !segments_.is_empty(); }
  void fit(const HalfRows& rows, const DeviceEncoder& with);
  // Encodes rows behind what is there, as NuqSide does. Waits for the device where there are
  // outliers: how many decides about pages. Throws OutOfMemory; then the side can only be
  // destroyed.
  void append(const DeviceRows& rows, const DeviceEncoder& with);

  // Whether the numbers of these rows that are outside the ranges have to be counted, and by what;
  // then whether so many mean that ranges must be fitted anew, for which append() needs host rows.
  bool can_drift(int64_t num_rows) const;
  CudaOutside outside(const Half* rows, int64_t num_rows, int32_t* counts) const;
  bool have_drifted(int64_t num_outside, int64_t num_rows) const {
    return segments_.have_drifted(num_outside, num_rows);
  }

  // append() in two halves, of rows that begin a tile and whose ranges are known: codes first, then
  // the outliers, when the host knows how many each tile has. Both take the same rows.
  struct Outliers {
    uint64_t* masks = nullptr;  // [num_pieces, head_dim] on the device; with outliers
    int32_t* counts = nullptr;  // [num_pieces]
  };
  int64_t num_pieces(int64_t num_rows) const;
  void begin_append(const DeviceRows& rows, const Outliers& outliers, const DeviceEncoder& with);
  void end_append(const DeviceRows& rows, const Outliers& outliers,
                  std::span<const int32_t> host_counts, const DeviceEncoder& with);
  bool has_outliers() const { return plan_->host->shape.has_outliers; }

  int64_t num_tokens() const { return num_tokens_; }
  // All heads, for kernels. Valid until the next append.
  CudaSide cuda_side() const;
  // The same with tables on the host, for tests; blocks, pages and fitted ranges are addresses of
  // the device.
  CodedSide coded_side(int64_t head) const;

 private:
  struct Piece {
    int64_t tile = 0, head = 0;
    int64_t first_token = 0, num_tokens = 0;  // within the tile
    int64_t first_row = 0;                    // of the rows
  };
  struct Chain {
    int64_t num_entries = 0;
    std::vector<ArenaPiece<OutlierPage>> pages;
    std::vector<OutlierPage*> table;
  };
  Piece piece_of(int64_t index, int64_t first, int64_t num_rows) const;
  std::byte* block_of(int64_t tile) const { return blocks_[tile / plan_->host->shape.num_tiles]; }
  int64_t in_block(int64_t tile) const { return tile % plan_->host->shape.num_tiles; }
  void own_block(int64_t index);
  void own_last_pages();
  void take_blocks(int64_t num_tokens, const DeviceEncoder& with);
  void keep_tables(CudaDevice& device, DeviceArena& arena);
  void keep_ranges(const DeviceEncoder& with);
  const float* load_ranges(const DeviceEncoder& with) const;
  // Rows as they are coded.
  struct Coded {
    const float* rows = nullptr;  // [num_rows, row_size]
    int64_t num_rows = 0;
    const float* ranges = nullptr;  // of keys
  };
  void append_rows(const float* rows, int64_t num_rows, const DeviceEncoder& with);
  void encode_rows(const float* rows, int64_t num_rows, const Outliers& outliers,
                   const DeviceEncoder& with);
  const float* coded_rows(const float* rows, int64_t num_rows, const DeviceEncoder& with) const;
  const float* encode_latents(const float* rows, int64_t num_rows, const DeviceEncoder& with) const;
  void store_latents(const Coded& coded, const DeviceEncoder& with) const;
  void fit_values(const Coded& coded, const DeviceEncoder& with) const;
  std::vector<CudaEncodeJob> encode_jobs(const Coded& coded, const Piece& piece,
                                         const DeviceEncoder& with) const;
  void add_bands(const CudaEncodeJob& all, std::vector<CudaEncodeJob>& jobs) const;
  // Of rows that are encoded, the last ones.
  void store_outliers(const DeviceRows& coded, const Outliers& outliers,
                      std::span<const int32_t> counts, const DeviceEncoder& with);

  const DeviceNuqPlan* plan_;
  int64_t num_tokens_ = 0;
  std::vector<ArenaPiece<std::byte>> owned_blocks_;
  std::vector<std::byte*> blocks_;
  KeySegments segments_;
  ArenaPiece<Half> ranges_;  // those of segments_
  ArenaPiece<int32_t> starts_;
  std::vector<Chain> chains_;
  DeviceTable<std::byte> block_table_;
  DeviceTable<OutlierPage> page_table_;  // [num_kv_heads]
  bool has_new_addresses_ = false;       // not in the tables yet
};

}  // namespace kvquant
