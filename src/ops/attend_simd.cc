// Attention in f32 with Highway, for the best instruction set of the CPU. Tiles keep channels
// (keys) and tokens (values) in pairs, so a register holds half as many tokens or channels as it
// has lanes, and even and odd lanes are added once at the end of a sum. Tiles of f16 and bf16 are
// converted in registers; for more than a few rows, once into scratch.
#include <cstring>
#include <type_traits>

// GCC 12.2 can miscompile some 16-bit operations of this fallback for CPUs without SSSE3, so
// Highway takes one-lane registers instead, which hold no pair. The operations used here are not
// among them: the tests run every target.
#define HWY_BROKEN_EMU128 0

#include "ops/attend_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attend_simd.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#if defined(__clang__)
#define KVQUANT_UNROLL _Pragma("unroll")
#else
#define KVQUANT_UNROLL _Pragma("GCC unroll 32")
#endif

HWY_BEFORE_NAMESPACE();
namespace kvquant::simd::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
static_assert(kLanes >= 2, "a register must hold a pair");

constexpr int kRows = 4;  // rows of a register block
// With more rows than this, tiles are converted into scratch first.
constexpr int64_t kConvertInRegistersRows = 2 * kRows;

// Up to this many rows values are read in wide sweeps, which the hardware prefetcher follows; up to
// the next number, blocks wait for memory more than they compute.
constexpr int64_t kSweepRows = 1;
constexpr int64_t kPrefetchRows = 16;

// Registers of a tile that a block of rows multiplies at a time: as many as leave the accumulators,
// the broadcast pairs and one loaded register in the register file, and at most `most`.
constexpr int num_vectors(int num_rows, int most) {
  const int registers = kLanes == 16 ? 32 : 16;
  int vectors = most;
  while (num_rows * vectors + num_rows + 2 > registers) vectors /= 2;
  return vectors;
}

V load(const float* p) { return hn::LoadU(D(), p); }
V load(const hwy::float16_t* p) {
  return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::float16_t, D>(), p));
}
V load(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), p));
}

// p[0] in even lanes, p[1] in odd ones.
V broadcast_pair(const float* p) {
  uint64_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return hn::BitCast(D(), hn::Set(hn::Repartition<uint64_t, D>(), pair));
}

// Sums of neighbouring lanes: those of `low`, then those of `high`.
V add_pairs(V low, V high) {
  const D d;
  return hn::Add(hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low));
}

// exp2 for x <= 0, with a relative error below 2e-7; 0 for x <= -126.
V exp2_nonpositive(V x) {
  const D d;
  const hn::RebindToSigned<D> di;
  const auto normal = hn::Gt(x, hn::Set(d, -126.0f));
  const V clamped = hn::Max(x, hn::Set(d, -126.0f));
  const V whole = hn::Round(clamped);
  const V fraction = hn::Sub(clamped, whole);
  V p = hn::Set(d, 1.534581185e-4f);  // minimax on [-1/2, 1/2] with exp2(0) = 1
  p = hn::MulAdd(p, fraction, hn::Set(d, 1.339993125e-3f));
  p = hn::MulAdd(p, fraction, hn::Set(d, 9.618488958e-3f));
  p = hn::MulAdd(p, fraction, hn::Set(d, 5.550328777e-2f));
  p = hn::MulAdd(p, fraction, hn::Set(d, 2.402264689e-1f));
  p = hn::MulAdd(p, fraction, hn::Set(d, 6.931472057e-1f));
  p = hn::MulAdd(p, fraction, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(di, whole));
  return hn::IfThenElseZero(normal, hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent)));
}

const float* query_row(const AttendBlock& block, int64_t row) {
  return block.query + row / block.group * block.query_stride + row % block.group * block.head_dim;
}

// scores [R, 64] = q k^T for R rows and a tile.
template <int R, class T>
void score_rows(const T* keys, const float* const* q, int64_t num_pairs, Prefetcher& ahead,
                float* scores) {
  constexpr int kVectors = num_vectors(R, 8);
  const D d;
  for (int64_t first = 0; first < 2 * kTileTokens; first += kVectors * kLanes) {
    V acc[R][kVectors];
    KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
      KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
    }
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
      ahead.step();
      V x[R];
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) x[r] = broadcast_pair(q[r] + 2 * pair);
      KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
        const V k = load(keys + pair * 2 * kTileTokens + first + v * kLanes);
        KVQUANT_UNROLL for (int r = 0; r < R; ++r) acc[r][v] = hn::MulAdd(k, x[r], acc[r][v]);
      }
    }
    KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
      KVQUANT_UNROLL for (int v = 0; v < kVectors; v += 2) {
        hn::StoreU(add_pairs(acc[r][v], acc[r][v + 1]), d,
                   scores + r * kTileTokens + first / 2 + v / 2 * kLanes);
      }
    }
  }
}

// Token pairs [begin, end) of a tile.
struct PairRange {
  int64_t begin;
  int64_t end;
};

// Some token pairs of a tile of values and their weights.
template <class T>
struct WeightedValues {
  const T* values;   // [32][row_size]
  int64_t row_size;  // elements of a token pair
  const float* p;    // [R][64]
  PairRange pairs;
};

// sums [R][kVectors * kLanes] += p v for the channels from `first` on, even and odd tokens apart.
template <int R, int kVectors, class T>
void add_values(const WeightedValues<T>& in, int64_t first, Prefetcher& ahead, float* sums,
                int64_t sums_stride) {
  const D d;
  V acc[R][kVectors];
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = hn::LoadU(d, sums + r * sums_stride + v * kLanes);
    }
  }
  for (int64_t pair = in.pairs.begin; pair < in.pairs.end; ++pair) {
    ahead.step();
    V weight[R];
    KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
      weight[r] = broadcast_pair(in.p + r * kTileTokens + 2 * pair);
    }
    KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
      const V x = load(in.values + pair * in.row_size + first + v * kLanes);
      KVQUANT_UNROLL for (int r = 0; r < R; ++r) acc[r][v] = hn::MulAdd(x, weight[r], acc[r][v]);
    }
  }
  KVQUANT_UNROLL for (int r = 0; r < R; ++r) {
    KVQUANT_UNROLL for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(acc[r][v], d, sums + r * sums_stride + v * kLanes);
    }
  }
}

// All channels of R rows, widest blocks first.
template <int R, int kVectors, class T>
void add_all_values(const WeightedValues<T>& in, int64_t first, Prefetcher& ahead, float* sums,
                    int64_t sums_stride) {
  for (; first + kVectors * kLanes <= in.row_size; first += kVectors * kLanes) {
    add_values<R, kVectors>(in, first, ahead, sums + first, sums_stride);
  }
  if constexpr (kVectors > 1) {
    add_all_values<R, kVectors / 2>(in, first, ahead, sums, sums_stride);
  }
}

void scale_row(float* row, int64_t size, V factor) {
  const D d;
  for (int64_t i = 0; i < size; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, row + i), factor), d, row + i);
  }
}

// Scores plus bias in units of log2, with -infinity for tokens not seen. Returns their lane-wise
// maximum.
V mask_scores(const AttendBlock& block, TokenRange seen, float row_bias, float* scores) {
  const D d;
  const V bias = hn::Set(d, row_bias);
  const V scale = hn::Set(d, block.log2_scale);
  const V none = hn::Set(d, -hwy::HighestValue<float>() * 2);
  const V begin = hn::Set(d, static_cast<float>(seen.begin));
  const V end = hn::Set(d, static_cast<float>(seen.end));
  V largest = none;
  for (int i = 0; i < kTileTokens; i += kLanes) {
    const V token = hn::Iota(d, static_cast<float>(i));
    const auto is_seen = hn::And(hn::Ge(token, begin), hn::Lt(token, end));
    const V s = hn::IfThenElse(is_seen, hn::MulAdd(hn::LoadU(d, scores + i), scale, bias), none);
    hn::StoreU(s, d, scores + i);
    largest = hn::Max(largest, s);
  }
  return largest;
}

// Turns the scores of one row into weights relative to its running max, and rescales what it has
// summed so far if the max has grown.
void soften_row(const AttendBlock& block, int64_t row, TokenRange seen, float bias, float* scores) {
  const D d;
  if (seen.begin >= seen.end) {
    std::memset(scores, 0, kTileTokens * sizeof(float));
    return;
  }
  SoftmaxState& state = block.states[row];
  float* sums = block.workspace.sums + row * 16;
  const V largest = mask_scores(block, seen, bias, scores);
  if (!hn::AllFalse(d, hn::Gt(largest, hn::Set(d, state.max)))) {
    const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
    const V factor = exp2_nonpositive(hn::Set(d, state.max - max));
    state.max = max;
    scale_row(block.workspace.pairs + row * 2 * block.padded_dim, 2 * block.padded_dim, factor);
    scale_row(sums, kLanes, factor);
  }
  const V max = hn::Set(d, state.max);
  V sum = hn::LoadU(d, sums);
  for (int i = 0; i < kTileTokens; i += kLanes) {
    const V p = exp2_nonpositive(hn::Sub(hn::LoadU(d, scores + i), max));
    hn::StoreU(p, d, scores + i);
    sum = hn::Add(sum, p);
  }
  hn::StoreU(sum, d, sums);
}

template <class K, class T>
struct Tile {
  const K* keys;
  const T* values;
};

// R rows against one tile.
template <int R, class K, class T>
void attend_rows(const AttendBlock& block, const TileWork& work, Tile<K, T> tile, int64_t row,
                 Prefetcher& ahead) {
  TokenRange seen[R];
  const float* q[R];
  TokenRange any{kTileTokens, 0};  // seen by at least one of the rows
  for (int r = 0; r < R; ++r) {
    q[r] = query_row(block, row + r);
    seen[r] = visible_tokens(work, (row + r) / block.group);
    if (seen[r].begin >= seen[r].end) continue;
    any.begin = HWY_MIN(any.begin, seen[r].begin);
    any.end = HWY_MAX(any.end, seen[r].end);
  }
  if (any.begin >= any.end) return;

  HWY_ALIGN float scores[R * kTileTokens];
  score_rows<R>(tile.keys, q, block.head_dim / 2, ahead, scores);
  for (int r = 0; r < R; ++r) {
    soften_row(block, row + r, seen[r], bias_of(block, work, row + r), scores + r * kTileTokens);
  }
  const int64_t stride = 2 * block.padded_dim;
  const WeightedValues<T> values{
      tile.values, 2 * block.value_dim, scores, {any.begin / 2, (any.end + 1) / 2}};
  add_all_values<R, num_vectors(R, 16)>(values, 0, ahead, block.workspace.pairs + row * stride,
                                        stride);
}

template <class K, class T>
void attend_all_rows(const AttendBlock& block, const TileWork& work, Tile<K, T> tile,
                     Prefetcher& ahead) {
  int64_t row = 0;
  for (; row + kRows <= block.num_rows; row += kRows)
    attend_rows<kRows>(block, work, tile, row, ahead);
  switch (block.num_rows - row) {
    case 1: attend_rows<1>(block, work, tile, row, ahead); break;
    case 2: attend_rows<2>(block, work, tile, row, ahead); break;
    case 3: attend_rows<3>(block, work, tile, row, ahead); break;
    default: break;
  }
}

template <class T>
void convert(const T* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += kLanes) hn::StoreU(load(from + i), D(), to + i);
}

template <class T>
void attend_tile(const AttendBlock& block, const TileWork& work, Prefetcher& ahead) {
  const Tile<T, T> tile{static_cast<const T*>(work.keys), static_cast<const T*>(work.values)};
  if (std::is_same_v<T, float> || block.num_rows <= kConvertInRegistersRows) {
    return attend_all_rows(block, work, tile, ahead);
  }
  auto* keys = static_cast<float*>(block.workspace.keys);
  auto* values = static_cast<float*>(block.workspace.values);
  convert(tile.keys, kTileTokens * block.head_dim, keys);
  convert(tile.values, kTileTokens * block.head_dim, values);
  attend_all_rows<float, float>(block, work, {keys, values}, ahead);
}

// Codes or rows.
void attend_raw_tile(const AttendBlock& block, const TileWork& work, Prefetcher& ahead) {
  auto* keys = static_cast<float*>(block.workspace.keys);
  auto* values = static_cast<float*>(block.workspace.values);
  if (is_coded(work)) {
    decode_coded_tile(work.coded, block.head_dim, work.num_tokens, block.workspace.planar, keys,
                      values);
  } else {
    widen_rows(work, block.head_dim, block.workspace.planar, keys, values);
  }
  attend_all_rows<float, float>(block, work, {keys, values}, ahead);
}

// 64 tokens from work.key_offset on, of a tile of keys and the one behind it.
template <class T>
void convert_shifted(const TileWork& work, int64_t head_dim, float* to) {
  constexpr int64_t kPairs = 2 * kTileTokens;  // of a pair of channels
  const auto *first = static_cast<const T*>(work.keys),
             *next = static_cast<const T*>(work.next_keys);
  const int64_t skipped = 2 * work.key_offset;
  HWY_ALIGN T pairs[kPairs] = {};
  for (int64_t c = 0; c < head_dim / 2; ++c) {
    std::memcpy(pairs, first + c * kPairs + skipped,
                static_cast<size_t>(kPairs - skipped) * sizeof(T));
    if (next != nullptr) {
      std::memcpy(pairs + kPairs - skipped, next + c * kPairs,
                  static_cast<size_t>(skipped) * sizeof(T));
    }
    convert(pairs, kPairs, to + c * kPairs);
  }
}

// Dense keys, values [32][value_dim][2] in scratch.
template <class T>
void attend_values_of_keys(const AttendBlock& block, const TileWork& work, const float* values,
                           Prefetcher& ahead) {
  const auto* stored = static_cast<const T*>(work.keys);
  if (work.key_offset == 0 && block.num_rows <= kConvertInRegistersRows) {
    return attend_all_rows<T, float>(block, work, {stored, values}, ahead);
  }
  auto* keys = static_cast<float*>(block.workspace.keys);
  if (work.key_offset == 0) {
    convert(stored, kTileTokens * block.head_dim, keys);
  } else {
    convert_shifted<T>(work, block.head_dim, keys);
  }
  attend_all_rows<float, float>(block, work, {keys, values}, ahead);
}

// As f32, [32][value_dim][2]: codes, latents of fp16, tiles beside keys that are latents.
void widen_values(const AttendBlock& block, const TileWork& work, float* values) {
  const int64_t dim = block.value_dim;
  if (work.values == nullptr) {
    return decode_coded_values(work.coded, dim, work.num_tokens, block.workspace.planar, values);
  }
  widen_tile_values(work, block.key_biases == nullptr ? DenseType::kF16 : work.type, dim, values);
}

// Keys that are latents, values in scratch.
void attend_latent_keys(const AttendBlock& block, const TileWork& work, const float* values) {
  Prefetcher none;
  const auto* halves = static_cast<const hwy::float16_t*>(work.keys);
  if (halves != nullptr && block.num_rows <= kConvertInRegistersRows) {
    return attend_all_rows<hwy::float16_t, float>(block, work, {halves, values}, none);
  }
  auto* keys = static_cast<float*>(block.workspace.keys);
  if (halves != nullptr) {
    convert(halves, kTileTokens * block.head_dim, keys);
  } else {
    decode_latent_keys(work.coded, block.head_dim, work.num_tokens, block.workspace.planar, keys);
  }
  attend_all_rows<float, float>(block, work, {keys, values}, none);
}

// Latents of any kind, coded values beside dense keys.
void attend_coded_values(const AttendBlock& block, const TileWork& work) {
  auto* keys = static_cast<float*>(block.workspace.keys);
  auto* values = static_cast<float*>(block.workspace.values);
  float* scratch = block.workspace.planar;
  Prefetcher none;
  widen_values(block, work, values);
  if (block.key_biases != nullptr) return attend_latent_keys(block, work, values);
  if (is_coded(work)) {
    decode_coded_keys(work.coded, block.head_dim, work.num_tokens, scratch, keys);
    return attend_all_rows<float, float>(block, work, {keys, values}, none);
  }
  switch (work.type) {
    case DenseType::kF16: return attend_values_of_keys<hwy::float16_t>(block, work, values, none);
    case DenseType::kBF16: return attend_values_of_keys<hwy::bfloat16_t>(block, work, values, none);
    case DenseType::kF32: return attend_values_of_keys<float>(block, work, values, none);
  }
}

// Adds even and odd lanes of what attend_tile summed.
void finish_row(const AttendBlock& block, int64_t row) {
  const D d;
  const float* pairs = block.workspace.pairs + row * 2 * block.padded_dim;
  float* acc = block.acc + row * block.padded_dim;
  for (int64_t c = 0; c < block.padded_dim; c += kLanes) {
    hn::StoreU(add_pairs(hn::LoadU(d, pairs + 2 * c), hn::LoadU(d, pairs + 2 * c + kLanes)), d,
               acc + c);
  }
  const V sums = hn::LoadU(d, block.workspace.sums + row * 16);
  block.states[row].sum = hn::GetLane(hn::SumOfLanes(d, sums));
}

}  // namespace

void attend_block(const AttendBlock& block) {
  const size_t row_bytes = 2 * static_cast<size_t>(block.padded_dim) * sizeof(float);
  std::memset(block.workspace.pairs, 0, static_cast<size_t>(block.num_rows) * row_bytes);
  std::memset(block.workspace.sums, 0, static_cast<size_t>(block.num_rows) * 64);
  for (int64_t row = 0; row < block.num_rows; ++row) block.states[row] = SoftmaxState{};
  const bool prefetches = block.num_rows > kSweepRows && block.num_rows <= kPrefetchRows;
  const int64_t num_steps = (block.num_rows + kRows - 1) / kRows * block.head_dim;
  const CodedTile* biased = nullptr;  // the tile that biases are of
  for (int64_t i = 0; i < block.num_tiles; ++i) {
    const TileWork& tile = block.tiles[i];
    const bool has_ranges = is_coded(tile) && block.key_biases == nullptr;
    if (has_ranges && (biased == nullptr || !have_same_biases(*biased, tile.coded))) {
      find_biases(block, tile.coded);
      biased = &tile.coded;
    }
    if (block.has_latents || is_half_coded(tile)) {
      attend_coded_values(block, tile);
      continue;
    }
    Prefetcher ahead;
    if (prefetches && i + 1 < block.num_tiles && is_dense(block.tiles[i + 1])) {
      ahead.start(block.tiles[i + 1], block.head_dim, num_steps);
    }
    if (!is_dense(tile)) {
      attend_raw_tile(block, tile, ahead);
      continue;
    }
    switch (tile.type) {
      case DenseType::kF16: attend_tile<hwy::float16_t>(block, tile, ahead); break;
      case DenseType::kBF16: attend_tile<hwy::bfloat16_t>(block, tile, ahead); break;
      case DenseType::kF32: attend_tile<float>(block, tile, ahead); break;
    }
  }
  for (int64_t row = 0; row < block.num_rows; ++row) finish_row(block, row);
}

}  // namespace kvquant::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::simd {

HWY_EXPORT(attend_block);

void attend_block(const AttendBlock& block) noexcept { HWY_DYNAMIC_DISPATCH(attend_block)(block); }

}  // namespace kvquant::simd
#endif
