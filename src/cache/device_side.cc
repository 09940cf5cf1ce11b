#include "cache/device_side.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "formats/codec_table.h"

namespace kvquant {

DeviceEncodeScratch::DeviceEncodeScratch(CudaDevice& device)
    : latents(device),
      positions(device),
      ranges(device),
      scales(device),
      zeros(device),
      marks(device),
      masks(device),
      counts(device),
      targets(device),
      dense_targets(device),
      jobs(device),
      outlier_jobs(device),
      pages(device) {}

int64_t DeviceEncodeScratch::num_bytes() const {
  return latents.num_bytes() + positions.num_bytes() + dense_targets.num_bytes() +
         ranges.num_bytes() + scales.num_bytes() + zeros.num_bytes() + marks.num_bytes() +
         masks.num_bytes() + counts.num_bytes() + targets.num_bytes() + jobs.num_bytes() +
         outlier_jobs.num_bytes() + pages.num_bytes();
}

DeviceNuqSide::DeviceNuqSide(const DeviceNuqPlan& plan)
    : plan_(&plan), segments_(plan.host->row_size(), plan.host->outlier_percent) {
  if (plan.host->shape.has_outliers) {
    chains_.resize(static_cast<size_t>(plan.host->shape.num_kv_heads));
  }
}

// Of rows that are encoded from token `first` on.
DeviceNuqSide::Piece DeviceNuqSide::piece_of(int64_t index, int64_t first, int64_t num_rows) const {
  const int64_t num_heads = plan_->host->shape.num_kv_heads;
  Piece piece;
  piece.tile = first / kTileTokens + index / num_heads;
  piece.head = index % num_heads;
  const int64_t begin = std::max(first, piece.tile * kTileTokens);
  const int64_t end = std::min(first + num_rows, (piece.tile + 1) * kTileTokens);
  piece.first_token = begin % kTileTokens;
  piece.num_tokens = end - begin;
  piece.first_row = begin - first;
  return piece;
}

int64_t DeviceNuqSide::num_pieces(int64_t num_rows) const {
  const int64_t end = num_tokens_ + num_rows;
  const int64_t num_tiles = (end + kTileTokens - 1) / kTileTokens - num_tokens_ / kTileTokens;
  return num_tiles * plan_->host->shape.num_kv_heads;
}

void DeviceNuqSide::own_block(int64_t index) {
  if (!owned_blocks_[index].is_shared()) return;
  has_new_addresses_ = true;
  owned_blocks_[index].own();
  blocks_[index] = owned_blocks_[index].data();
}

void DeviceNuqSide::own_last_pages() {
  for (Chain& chain : chains_) {
    if (chain.num_entries % kOutliersPerPage == 0 || !chain.pages.back().is_shared()) continue;
    has_new_addresses_ = true;
    chain.pages.back().own();
    chain.table.back() = chain.pages.back().data();
  }
}

// Where kernels look up what was taken.
void DeviceNuqSide::keep_tables(CudaDevice& device, DeviceArena& arena) {
  if (!has_new_addresses_) return;
  block_table_.assign(std::span<std::byte* const>(blocks_), device, arena);
  std::vector<std::span<OutlierPage* const>> lists;
  for (const Chain& chain : chains_) lists.emplace_back(chain.table);
  if (!lists.empty()) page_table_.assign(lists, device, arena);
  has_new_addresses_ = false;
}

void DeviceNuqSide::own(CudaDevice& device, DeviceArena& arena) {
  for (int64_t i = 0; i < std::ssize(blocks_); ++i) own_block(i);
  for (Chain& chain : chains_) {
    for (size_t i = 0; i < chain.pages.size(); ++i) {
      chain.pages[i].own();
      chain.table[i] = chain.pages[i].data();
    }
  }
  ranges_.own();
  starts_.own();
  has_new_addresses_ = !blocks_.empty();
  keep_tables(device, arena);
}

int64_t DeviceNuqSide::held_bytes() const {
  int64_t bytes = ranges_.num_bytes() + starts_.num_bytes() + block_table_.num_bytes() +
                  page_table_.num_bytes();
  for (const auto& block : owned_blocks_) bytes += block.num_bytes();
  for (const Chain& chain : chains_) {
    for (const auto& page : chain.pages) bytes += page.num_bytes();
  }
  return bytes;
}

// What is written next, to be this side's own.
void DeviceNuqSide::take_blocks(int64_t num_tokens, const DeviceEncoder& with) {
  const int64_t block_tokens = plan_->host->shape.num_tiles * kTileTokens;
  if (num_tokens_ % block_tokens != 0) own_block(num_tokens_ / block_tokens);
  own_last_pages();
  while (std::ssize(blocks_) * block_tokens < num_tokens) {
    owned_blocks_.emplace_back(with.arena, plan_->host->layout.num_bytes);
    blocks_.push_back(owned_blocks_.back().data());
    has_new_addresses_ = true;
  }
}

// What attention reads of fitted ranges.
void DeviceNuqSide::keep_ranges(const DeviceEncoder& with) {
  const std::span<const Half> ranges = segments_.ranges();
  ranges_ = ArenaPiece<Half>(with.arena, std::ssize(ranges));
  with.device.copy_in(ranges_.data(), ranges.data(), static_cast<int64_t>(ranges.size_bytes()));
  const std::span<const int32_t> starts = segments_.starts();
  if (starts.empty()) return;
  starts_ = ArenaPiece<int32_t>(with.arena, std::ssize(starts));
  with.device.copy_in(starts_.data(), starts.data(), static_cast<int64_t>(starts.size_bytes()));
}

void DeviceNuqSide::fit(const HalfRows& rows, const DeviceEncoder& with) {
  assert(!is_fitted());
  segments_.begin(0, rows, with.pool);
  keep_ranges(with);
}

// Of all tokens that are appended from now on, as f32, [2 or 4][row_size].
const float* DeviceNuqSide::load_ranges(const DeviceEncoder& with) const {
  if (plan_->host->side == KvSide::kValue) return nullptr;
  if (plan_->ranges != nullptr) return plan_->ranges;
  std::vector<float> widened;
  const auto last = segments_.ranges().last(static_cast<size_t>(segments_.stride()));
  for (const Half x : last) widened.push_back(to_float(x));
  with.scratch.ranges.assign(widened);
  return with.scratch.ranges.data();
}

void DeviceNuqSide::transform(float* rows, int64_t num_rows, int64_t first_token,
                              const DeviceEncoder& with) const {
  const NuqPlan& plan = *plan_->host;
  const int64_t num_heads = plan.shape.num_kv_heads, head_dim = plan.input_size() / num_heads;
  if (plan.hadamard) {
    with.device.run(CudaHadamard{rows, num_rows, num_heads, head_dim,
                                 1 / std::sqrt(static_cast<float>(head_dim))});
  }
  if (plan.rope == nullptr) return;
  std::vector<int64_t> positions(static_cast<size_t>(num_rows));
  std::iota(positions.begin(), positions.end(), plan.first_position + first_token);
  with.scratch.positions.assign(positions);
  with.device.run(CudaRope{rows, plan.input_size(), with.scratch.positions.data(), plan_->cos,
                           plan_->sin, num_rows, num_heads, head_dim});
}

const float* DeviceNuqSide::encode_latents(const float* rows, int64_t num_rows,
                                           const DeviceEncoder& with) const {
  const NuqPlan& plan = *plan_->host;
  with.scratch.latents.reserve_discarding(num_rows * plan.row_size());
  with.device.run(CudaEncodeLatents{rows, plan_->maps, with.scratch.latents.data(), num_rows,
                                    plan.shape.num_kv_heads, plan.latents[0].head_dim});
  return with.scratch.latents.data();
}

// fp16 numbers in tiles of their side.
void DeviceNuqSide::store_latents(const Coded& coded, const DeviceEncoder& with) const {
  const NuqPlan& plan = *plan_->host;
  const int64_t width = plan.shape.head_dim;
  std::vector<CudaDenseTarget> targets;
  for (int64_t i = 0; i < coded.num_rows; ++i) {
    const int64_t token = num_tokens_ + i, tile = token / kTileTokens;
    for (int64_t head = 0; head < plan.shape.num_kv_heads; ++head) {
      CudaDenseTarget target;
      target.row = coded.rows + i * plan.row_size() + head * width;
      target.tile = block_of(tile) + plan.layout.codes(head, in_block(tile));
      target.token = token % kTileTokens;
      target.side = plan.rope != nullptr ? KvSide::kKey : KvSide::kValue;
      targets.push_back(target);
    }
  }
  with.scratch.dense_targets.assign(targets);
  with.device.run(CudaDense{with.scratch.dense_targets.data(), DenseType::kF16, std::ssize(targets),
                            /*num_heads=*/1, width});
}

// Scales, zero points and marks of outliers: of tokens or, of latents, of each head of them, head
// after head.
void DeviceNuqSide::fit_values(const Coded& coded, const DeviceEncoder& with) const {
  const NuqPlan& plan = *plan_->host;
  DeviceEncodeScratch& scratch = with.scratch;
  const int64_t size = plan.row_size(), num_rows = coded.num_rows;
  const bool per_head = plan.shape.has_latents;
  const int64_t num_parts = per_head ? plan.shape.num_kv_heads : 1;
  const int64_t part = per_head ? plan.latents[0].rank : size;
  const int64_t num_outliers = per_head ? num_latent_outliers(part, plan.outlier_percent)
                                        : num_value_outliers(part, plan.outlier_percent);
  scratch.scales.reserve_discarding(num_parts * num_rows);
  scratch.zeros.reserve_discarding(num_parts * num_rows);
  if (plan.shape.has_outliers) scratch.marks.reserve_discarding(num_rows * size);
  std::vector<CudaFitTarget> targets;
  for (int64_t p = 0; p < num_parts; ++p) {
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t token = num_tokens_ + i, tile = token / kTileTokens;
      std::byte* block = block_of(tile);
      const int64_t param = plan.shape.token_params(in_block(tile), p) + token % kTileTokens;
      const int64_t at = i * size + p * plan.shape.head_dim;
      targets.push_back({coded.rows + at,
                         plan.shape.has_outliers ? scratch.marks.data() + at : nullptr,
                         reinterpret_cast<Half*>(block + plan.layout.scales) + param,
                         reinterpret_cast<Half*>(block + plan.layout.zeros) + param});
    }
  }
  scratch.targets.assign(targets);
  with.device.run(CudaFit{scratch.targets.data(), scratch.scales.data(), scratch.zeros.data(),
                          std::ssize(targets), part, per_head ? plan.shape.head_dim : size,
                          num_outliers});
}

// Each band is a tile of its own; scales and zero points are those of all.
void DeviceNuqSide::add_bands(const CudaEncodeJob& all, std::vector<CudaEncodeJob>& jobs) const {
  for_each_band(plan_->host->shape.bands, [&](const CodeBand& band) {
    CudaEncodeJob job = all;
    if (band.bits != kByteCodeBits) job.encode.codebook = plan_->bands + (band.bits == 4 ? 0 : 1);
    job.encode.rows += band.first_channel;
    job.encode.head_dim = band.num_channels;
    job.encode.codes += band.offset;
    jobs.push_back(job);
  });
}

std::vector<CudaEncodeJob> DeviceNuqSide::encode_jobs(const Coded& coded, const Piece& piece,
                                                      const DeviceEncoder& with) const {
  const NuqPlan& plan = *plan_->host;
  const int64_t size = plan.row_size(), head_dim = plan.shape.head_dim;
  const int64_t column = piece.head * head_dim;
  const bool is_key = plan.side == KvSide::kKey;
  CudaEncodeJob job;
  EncodeJob& encode = job.encode;
  encode.codebook = plan_->codebooks + (plan.codebooks.size() == 1 ? 0 : piece.head);
  encode.rows = coded.rows + piece.first_row * size + column;
  encode.row_stride = size;
  encode.head_dim = head_dim;
  encode.first_token = piece.first_token;
  encode.num_tokens = piece.num_tokens;
  encode.codes = reinterpret_cast<uint8_t*>(block_of(piece.tile)) +
                 plan.layout.codes(piece.head, in_block(piece.tile));
  if (plan_->feedback != nullptr) encode.feedback = plan_->feedback + piece.head;
  if (is_key) {
    encode.axis = ScaleAxis::kChannel;
    encode.scales = coded.ranges + column;
    encode.zeros = encode.scales + size;
  } else {  // read by the tokens of the tile
    const int64_t part = plan.shape.has_latents ? piece.head * coded.num_rows : 0;
    encode.axis = ScaleAxis::kToken;
    encode.scales = with.scratch.scales.data() + part + piece.first_row - piece.first_token;
    encode.zeros = with.scratch.zeros.data() + part + piece.first_row - piece.first_token;
  }
  if (plan.shape.has_outliers && is_key) {
    encode.low = encode.zeros + size;
    encode.high = encode.low + size;
  } else if (plan.shape.has_outliers) {
    job.marks = with.scratch.marks.data() + piece.first_row * size + column;
    job.mark_stride = size;
  }
  std::vector<CudaEncodeJob> jobs;
  plan.shape.bands.is_banded() ? add_bands(job, jobs) : jobs.push_back(job);
  return jobs;
}

const float* DeviceNuqSide::coded_rows(const float* rows, int64_t num_rows,
                                       const DeviceEncoder& with) const {
  return plan_->host->latents.empty() ? rows : encode_latents(rows, num_rows, with);
}

// All but outliers, of which masks and counts are left.
void DeviceNuqSide::encode_rows(const float* rows, int64_t num_rows, const Outliers& outliers,
                                const DeviceEncoder& with) {
  const NuqPlan& plan = *plan_->host;
  const int64_t head_dim = plan.shape.head_dim, count = num_pieces(num_rows);
  take_blocks(num_tokens_ + num_rows, with);
  Coded coded{coded_rows(rows, num_rows, with), num_rows};
  if (!plan.shape.has_codes()) {
    store_latents(coded, with);
    num_tokens_ += num_rows;
    return;
  }
  if (plan.side == KvSide::kValue) fit_values(coded, with);
  coded.ranges = load_ranges(with);
  std::vector<CudaEncodeJob> jobs;
  for (int64_t index = 0; index < count; ++index) {
    const Piece piece = piece_of(index, num_tokens_, num_rows);
    for (const CudaEncodeJob& job : encode_jobs(coded, piece, with)) jobs.push_back(job);
    if (!plan.shape.has_outliers) continue;
    jobs.back().encode.outliers = outliers.masks + index * head_dim;
    jobs.back().num_outliers = outliers.counts + index;
  }
  with.scratch.jobs.assign(jobs);
  with.device.run(CudaEncode{with.scratch.jobs.data(), std::ssize(jobs),
                             encode_shared_layout(head_dim, plan_->feedback != nullptr).num_bytes});
  num_tokens_ += num_rows;
}

void DeviceNuqSide::append_rows(const float* rows, int64_t num_rows, const DeviceEncoder& with) {
  if (num_rows == 0) return;
  DeviceEncodeScratch& scratch = with.scratch;
  const int64_t count = num_pieces(num_rows);
  if (has_outliers()) {
    scratch.masks.reserve_discarding(count * plan_->host->shape.head_dim);
    scratch.counts.reserve_discarding(count);
  }
  const Outliers outliers{scratch.masks.data(), scratch.counts.data()};
  encode_rows(rows, num_rows, outliers, with);
  if (!has_outliers()) return;
  const DeviceRows coded{plan_->host->latents.empty() ? rows : scratch.latents.data(), num_rows};
  store_outliers(coded, outliers, scratch.counts.read(count), with);
}

void DeviceNuqSide::store_outliers(const DeviceRows& coded, const Outliers& outliers,
                                   std::span<const int32_t> counts, const DeviceEncoder& with) {
  const NuqPlan& plan = *plan_->host;
  const int64_t size = plan.row_size(), head_dim = plan.shape.head_dim;
  std::vector<CudaOutlierJob> jobs;
  std::vector<OutlierPage*> pages;
  std::vector<size_t> first_pages;  // of the jobs, in `pages`
  for (int64_t i = 0; i < std::ssize(counts); ++i) {
    const Piece piece = piece_of(i, num_tokens_ - coded.num_rows, coded.num_rows);
    Chain& chain = chains_[piece.head];
    const int64_t first = chain.num_entries, end = first + counts[static_cast<size_t>(i)];
    const int64_t num_pages = (end + kOutliersPerPage - 1) / kOutliersPerPage;
    while (std::ssize(chain.pages) < num_pages) {
      chain.pages.emplace_back(with.arena, 1);
      chain.table.push_back(chain.pages.back().data());
      has_new_addresses_ = true;
    }
    first_pages.push_back(pages.size());
    for (int64_t page = first / kOutliersPerPage; page < num_pages; ++page) {
      pages.push_back(chain.table[page]);
    }
    chain.num_entries = end;
    std::byte* block = block_of(piece.tile);
    const int64_t of_head = in_block(piece.tile) * plan.shape.num_kv_heads + piece.head;
    jobs.push_back({.masks = outliers.masks + i * head_dim,
                    .rows = coded.rows + piece.first_row * size + piece.head * head_dim,
                    .row_stride = size,
                    .head_dim = head_dim,
                    .first_token = piece.first_token,
                    .num_tokens = piece.num_tokens,
                    .first_entry = first,
                    .start = reinterpret_cast<uint32_t*>(block + plan.layout.starts) + of_head,
                    .count = reinterpret_cast<uint16_t*>(block + plan.layout.counts) + of_head});
  }
  with.scratch.pages.assign(pages);
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].pages = with.scratch.pages.data() + first_pages[i];
  }
  with.scratch.outlier_jobs.assign(jobs);
  with.device.run(CudaOutliers{with.scratch.outlier_jobs.data(), std::ssize(jobs)});
}

bool DeviceNuqSide::can_drift(int64_t num_rows) const {
  return needs_host_rows() && is_fitted() &&
         segments_.can_drift(num_tokens_ / kTileTokens, num_rows);
}

CudaOutside DeviceNuqSide::outside(const Half* rows, int64_t num_rows, int32_t* counts) const {
  const int64_t size = plan_->host->row_size();
  const Half* scales = ranges_.data() + ranges_.size() - segments_.stride();
  return {rows, scales, scales + size, counts, num_rows, size};
}

void DeviceNuqSide::begin_append(const DeviceRows& rows, const Outliers& outliers,
                                 const DeviceEncoder& with) {
  assert(num_tokens_ % kTileTokens == 0 && is_fitted());
  encode_rows(rows.rows, rows.num_rows, outliers, with);
  keep_tables(with.device, with.arena);
}

void DeviceNuqSide::end_append(const DeviceRows& rows, const Outliers& outliers,
                               std::span<const int32_t> host_counts, const DeviceEncoder& with) {
  const DeviceRows coded{coded_rows(rows.rows, rows.num_rows, with), rows.num_rows};
  store_outliers(coded, outliers, host_counts, with);
  keep_tables(with.device, with.arena);
}

void DeviceNuqSide::append(const DeviceRows& rows, const DeviceEncoder& with) {
  int64_t num_old = 0;
  if (rows.host) {  // what fills up the last tile has its ranges
    const int64_t tile = (num_tokens_ + kTileTokens - 1) / kTileTokens;
    const int64_t room = std::min(rows.num_rows, tile * kTileTokens - num_tokens_);
    const HalfRows fresh = rows.host->behind(room);
    if (segments_.have_drifted(tile, fresh, with.pool)) {
      num_old = room;
      append_rows(rows.rows, num_old, with);
      segments_.begin(tile, fresh, with.pool);
      keep_ranges(with);
    }
  }
  append_rows(rows.rows + num_old * plan_->host->input_size(), rows.num_rows - num_old, with);
  keep_tables(with.device, with.arena);
}

CudaSide DeviceNuqSide::cuda_side() const {
  const NuqPlan& plan = *plan_->host;
  CudaSide side;
  side.source = TileSource::kCoded;
  side.codebook = plan_->codebooks;
  side.codebook_step = plan.codebooks.size() > 1 ? 1 : 0;
  side.shape = plan.shape;
  side.layout = plan.layout;
  side.head_step = plan.shape.head_dim;
  side.blocks = block_table_.data();
  side.hadamard = plan.hadamard;
  if (plan.side == KvSide::kKey) {
    side.logit_bias = kLogitBias;
    side.scales = needs_host_rows() ? ranges_.data() : plan_->half_ranges;
    side.zeros = side.scales + plan.row_size();
    side.segment_starts = starts_.data();
    side.num_segment_starts = std::ssize(segments_.starts());
    side.segment_stride = segments_.stride();
  }
  if (plan.shape.has_outliers) {
    side.pages = page_table_.data();
    side.page_step = page_table_.step();
  }
  return side;
}

CodedSide DeviceNuqSide::coded_side(int64_t head) const {
  const NuqPlan& plan = *plan_->host;
  CodedSide side{.codebook = plan.codebooks.empty() ? nullptr : &plan.codebook(head),
                 .shape = plan.shape,
                 .layout = plan.layout,
                 .head = head,
                 .blocks = blocks_,
                 .hadamard = plan.hadamard};
  if (!plan.latents.empty()) side.latents = &plan.latents[static_cast<size_t>(head)];
  if (plan.side == KvSide::kKey) {
    side.logit_bias = kLogitBias;
    side.scales = needs_host_rows() ? ranges_.data() : plan.ranges.data();
    side.scales += head * plan.shape.head_dim;
    side.zeros = side.scales + plan.row_size();
    side.segment_starts = segments_.starts();
    side.segment_stride = segments_.stride();
  }
  if (plan.shape.has_outliers) side.pages = chains_[head].table;
  return side;
}

}  // namespace kvquant
