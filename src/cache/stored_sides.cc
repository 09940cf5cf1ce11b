// How a sequence becomes sections and comes back: members of DenseSide, NuqSide and LayerStore.
// What comes back is hostile. Everything that says where something is, or that kernels take for
// granted, is checked: sizes before memory is taken, places of outliers, numbers that must be
// finite. Codes may be anything.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "cache/layer_store.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

StoredSection blocks_section(const std::string& prefix, const BlockList<std::byte>& blocks,
                             int64_t num_blocks, int64_t block_bytes) {
  StoredSection section{prefix + ".blocks"};
  for (int64_t i = 0; i < num_blocks; ++i) {
    section.pieces.emplace_back(blocks[i], static_cast<size_t>(block_bytes));
  }
  return section;
}

void read_blocks(const std::string& prefix, BlockList<std::byte>& blocks, int64_t num_blocks,
                 int64_t block_bytes, SectionReader& in) {
  in.open(prefix + ".blocks", num_blocks * block_bytes);
  blocks.own(0, num_blocks);
  for (int64_t i = 0; i < num_blocks; ++i) in.read(blocks[i], block_bytes);
}

bool all_zero(const std::byte* bytes, int64_t count) {
  return std::all_of(bytes, bytes + count, [](std::byte b) { return b == std::byte{0}; });
}

bool all_finite(DenseType type, const std::byte* bytes, int64_t num_bytes) {
  const uint32_t exponent = type == DenseType::kF32    ? 0x7F800000u
                            : type == DenseType::kBF16 ? 0x7F80u
                                                       : 0x7C00u;
  const int64_t size = element_bytes(type);
  for (int64_t i = 0; i < num_bytes; i += size) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes + i, static_cast<size_t>(size));
    if ((bits & exponent) == exponent) return false;
  }
  return true;
}

}  // namespace

void DenseSide::add_sections(const std::string& prefix,
                             std::vector<StoredSection>& sections) const {
  sections.push_back(blocks_section(prefix, blocks_, divide_up(num_tokens_, block_tokens()),
                                    plan_->block_bytes()));
}

void DenseSide::restore(const std::string& prefix, int64_t num_tokens, SectionReader& in) {
  const int64_t num_blocks = divide_up(num_tokens, block_tokens());
  read_blocks(prefix, blocks_, num_blocks, plan_->block_bytes(), in);
  for (int64_t i = 0; i < num_blocks; ++i) {
    if (!all_finite(plan_->type, blocks_[i], plan_->block_bytes())) {
      in.fail(fmt::format("block {} has a number that is not finite", i));
    }
  }
  num_tokens_ = num_tokens;
}

void NuqSide::add_sections(const std::string& prefix, std::vector<StoredSection>& sections) const {
  sections.push_back(blocks_section(prefix, blocks_,
                                    divide_up(num_tokens_, plan_->shape.num_tiles * kTileTokens),
                                    plan_->layout.num_bytes));
  if (fits_keys()) {
    const auto starts = segments_.starts();
    const auto ranges = segments_.ranges();
    add_section(sections, prefix + ".segments", starts.data(), static_cast<int64_t>(starts.size()));
    add_section(sections, prefix + ".ranges", ranges.data(), static_cast<int64_t>(ranges.size()));
  }
  if (!plan_->shape.has_outliers) return;
  StoredSection entries{prefix + ".outliers"};
  for (const Chain& chain : chains_) {
    for (int64_t done = 0; done < chain.num_entries; done += kOutliersPerPage) {
      const int64_t count = std::min(kOutliersPerPage, chain.num_entries - done);
      const OutlierPage& page = *chain.pages[done / kOutliersPerPage];
      entries.pieces.push_back(
          std::as_bytes(std::span(page.entries).first(static_cast<size_t>(count))));
    }
  }
  sections.push_back(std::move(entries));
}

void NuqSide::restore(const std::string& prefix, int64_t num_tokens, SectionReader& in) {
  const int64_t per_block = plan_->shape.num_tiles;
  const int64_t num_tiles = divide_up(num_tokens, kTileTokens);
  const int64_t num_blocks = divide_up(num_tiles, per_block);
  read_blocks(prefix, blocks_, num_blocks, plan_->layout.num_bytes, in);
  num_tokens_ = num_tokens;
  const auto all_heads = [&](int64_t tile, auto&& holds) {
    for (int64_t head = 0; head < plan_->shape.num_kv_heads; ++head) {
      const auto* bytes = reinterpret_cast<const std::byte*>(codes(tile, head));
      if (!holds(bytes, plan_->layout.code_tile)) return false;
    }
    return true;
  };
  const auto is_finite_half = [](const std::byte* bytes, int64_t count) {
    return all_finite(DenseType::kF16, bytes, count);
  };
  for (int64_t tile = 0; tile < num_blocks * per_block; ++tile) {
    // Of tiles that are not used yet: their tokens come later and find them empty.
    if (tile >= num_tiles && !all_heads(tile, all_zero)) {
      in.fail(fmt::format("tile {} is unused, but has codes", tile));
    }
    if (!plan_->shape.has_codes() && !all_heads(tile, is_finite_half)) {
      in.fail(fmt::format("tile {} has a latent that is not finite", tile));
    }
    const int64_t num_params = plan_->shape.num_token_params();
    if (num_params == 0) continue;
    const Half* scales = token_params(tile, 0, plan_->layout.scales);
    const Half* zeros = token_params(tile, 0, plan_->layout.zeros);
    if (!std::all_of(scales, scales + num_params, is_scale) ||
        !std::all_of(zeros, zeros + num_params, is_finite)) {
      in.fail(fmt::format("tile {} has a scale or a zero point that can't be", tile));
    }
  }
  if (fits_keys()) restore_ranges(prefix, in);
  if (plan_->shape.has_outliers) restore_outliers(prefix + ".outliers", in);
}

void NuqSide::restore_ranges(const std::string& prefix, SectionReader& in) {
  const int64_t num_tiles = divide_up(num_tokens_, kTileTokens);
  constexpr auto kStartBytes = static_cast<int64_t>(sizeof(int32_t));
  const int64_t num_bytes = in.open(prefix + ".segments"), num_starts = num_bytes / kStartBytes;
  if (num_bytes % kStartBytes != 0 || num_starts >= std::max<int64_t>(1, num_tiles)) {
    in.fail(fmt::format("{} bytes of segments, but {} tiles", num_bytes, num_tiles));
  }
  std::vector<int32_t> starts(static_cast<size_t>(num_starts));
  in.read(starts.data(), num_bytes);
  int64_t before = 0;
  for (const int32_t start : starts) {
    if (start <= before || start >= num_tiles) {
      in.fail(fmt::format("a segment begins at tile {} of {}, after tile {}", start, num_tiles,
                          before));
    }
    before = start;
  }
  const int64_t size = plan_->row_size(), stride = segments_.stride();
  const int64_t count = num_tokens_ == 0 ? 0 : (num_starts + 1) * stride;
  in.open(prefix + ".ranges", count * static_cast<int64_t>(sizeof(Half)));
  std::vector<Half> ranges(static_cast<size_t>(count));
  in.read_halves(ranges.data(), count);
  for (int64_t first = 0; first < count; first += stride) {
    if (!std::all_of(ranges.begin() + first, ranges.begin() + first + size, is_scale)) {
      in.fail("a scale is negative");
    }
  }
  segments_.restore(std::move(ranges), std::move(starts));
}

// Lists without gaps: a tile's entries begin where those of the tile before it end.
void NuqSide::restore_outliers(const std::string& name, SectionReader& in) {
  const int64_t num_heads = plan_->shape.num_kv_heads;
  const int64_t num_tiles = divide_up(num_tokens_, kTileTokens);
  const int64_t num_bytes = in.open(name);
  int64_t total = 0;
  for (int64_t head = 0; head < num_heads; ++head) {
    int64_t& sum = chains_[static_cast<size_t>(head)].num_entries;
    for (int64_t tile = 0; tile < blocks_.size() * plan_->shape.num_tiles; ++tile) {
      const int64_t start = *outlier_start(tile, head), count = *outlier_count(tile, head);
      if (tile < num_tiles ? start != sum : start != 0 || count != 0) {
        in.fail(fmt::format("tile {} of KV head {} has {} outliers from {} on, expected from {}",
                            tile, head, count, start, tile < num_tiles ? sum : 0));
      }
      sum += count;
    }
    total += sum;
  }
  constexpr auto kEntryBytes = static_cast<int64_t>(sizeof(OutlierEntry));
  if (num_bytes != total * kEntryBytes) {
    in.fail(fmt::format("{} bytes, expected {}", num_bytes, total * kEntryBytes));
  }
  for (int64_t head = 0; head < num_heads; ++head) {
    Chain& chain = chains_[static_cast<size_t>(head)];
    chain.pages.own(0, divide_up(chain.num_entries, kOutliersPerPage));
    for (int64_t done = 0; done < chain.num_entries; done += kOutliersPerPage) {
      const int64_t count = std::min(kOutliersPerPage, chain.num_entries - done);
      in.read(chain.pages[done / kOutliersPerPage]->entries, count * kEntryBytes);
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) check_entries(head, tile, in);
  }
}

// Token by token, channels ascending, within the tile's tokens.
void NuqSide::check_entries(int64_t head, int64_t tile, const SectionReader& in) const {
  const int64_t num_tokens = std::min<int64_t>(kTileTokens, num_tokens_ - tile * kTileTokens);
  const int64_t first = *outlier_start(tile, head), count = *outlier_count(tile, head);
  const int64_t head_dim = plan_->shape.head_dim;
  int64_t before = -1;  // token * head_dim + channel
  for (int64_t e = first; e < first + count; ++e) {
    const OutlierEntry& entry = chains_[static_cast<size_t>(head)]
                                    .pages[e / kOutliersPerPage]
                                    ->entries[e % kOutliersPerPage];
    const int64_t token = entry.place % kTileTokens, channel = entry.place / kTileTokens;
    const int64_t at = token * head_dim + channel;
    if (token >= num_tokens || channel >= head_dim || at <= before || !is_finite(entry.value)) {
      in.fail(
          fmt::format("entry {} of KV head {} (token {} of tile {}, channel {}) is out of "
                      "order, out of range or not finite",
                      e, head, token, tile, channel));
    }
    const CodePlace place = code_place(plan_->side, head_dim, token, channel);
    if (code_at(codes(tile, head), plan_->shape.bits, place) != 0) {
      in.fail(fmt::format("the code under entry {} of KV head {} is not 0", e, head));
    }
    before = at;
  }
}

void LayerStore::add_sections(const std::string& prefix,
                              std::vector<StoredSection>& sections) const {
  const int64_t size = plan_->row_size();
  for (const Side* side : {&key_, &value_}) {
    const std::string name = prefix + (side == &key_ ? ".key" : ".value");
    if (side->dense) {
      side->dense->add_sections(name, sections);
      continue;
    }
    side->nuq->add_sections(name, sections);
    add_section(sections, name + ".sinks", side->sinks.data(), num_sinks() * size);
    add_section(sections, name + ".window", side->window.data(), window_rows_ * size);
  }
}

// Whether a settled store of this length may have compressed so many tokens.
bool LayerStore::may_have_encoded(int64_t num_encoded) const {
  const int64_t behind_sinks = length_ - num_sinks();
  if (plan_->mode == CacheMode::kStrict) return num_encoded == behind_sinks;
  return num_encoded >= 0 && num_encoded % kTileTokens == 0 && num_encoded <= behind_sinks &&
         behind_sinks - num_encoded < plan_->recent + kTileTokens;
}

void LayerStore::restore_rows(SharedRows& rows, int64_t num_rows, int64_t capacity,
                              const std::string& name, SectionReader& in) {
  const int64_t size = plan_->row_size();
  in.open(name, num_rows * size * static_cast<int64_t>(sizeof(Half)));
  if (num_rows == 0) return;
  Half* to = rows.own(capacity * size, /*first=*/0, /*num_kept=*/0, *plan_->account);
  in.read_halves(to, num_rows * size);
}

void LayerStore::restore(const std::string& prefix, SectionReader& in) {
  const int64_t length = in.stored().num_tokens, num_encoded = in.stored().num_encoded;
  const bool fits = 0 <= length && length <= plan_->rope->num_positions();
  length_ = fits ? length : 0;
  if (!fits || (plan_->is_compressed() && !may_have_encoded(num_encoded))) {
    throw FormatError(fmt::format("{}: {} tokens, {} of them compressed, can't be in {}",
                                  in.stored().origin, length, num_encoded, prefix));
  }
  if (plan_->is_compressed()) {
    const int64_t behind_sinks = length - num_sinks();
    window_rows_ = plan_->mode == CacheMode::kStrict ? std::min(plan_->recent, behind_sinks)
                                                     : behind_sinks - num_encoded;
  }
  for (Side* side : {&key_, &value_}) {
    const std::string name = prefix + (side == &key_ ? ".key" : ".value");
    if (side->dense) {
      side->dense->restore(name, length, in);
      continue;
    }
    side->nuq->restore(name, num_encoded, in);
    restore_rows(side->sinks, num_sinks(), plan_->sink, name + ".sinks", in);
    restore_rows(side->window, window_rows_, window_rows_, name + ".window", in);
  }
}

}  // namespace kvquant
