// Codes in registers to rows of a tile (formats/code_planes.h). 32-bit lanes of a register are
// lanes of a row: the codes of a half of the pair in all slots are shifted into each other, nothing
// is shuffled. Included once per instruction set (Highway), for vectors of 8 or 16 lanes.
#if defined(KVQUANT_OPS_CODE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVQUANT_OPS_CODE_ROWS_INL_H_
#undef KVQUANT_OPS_CODE_ROWS_INL_H_
#else
#define KVQUANT_OPS_CODE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include "formats/code_planes.h"

HWY_BEFORE_NAMESPACE();
namespace kvquant {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes of adjacent slots, the first in the low bits. Slots are added from the last to the first.
template <int kBits, class IntVec>
struct SlotCodes {
  using D = hn::DFromV<IntVec>;

  HWY_INLINE SlotCodes() : all(hn::Zero(D())) {}

  HWY_INLINE void add(IntVec code) { all = hn::Or(hn::ShiftLeft<kBits>(all), code); }

  // Of the other lanes codes become 0.
  HWY_INLINE void keep_first(int64_t num_lanes) {
    all = hn::IfThenElseZero(hn::FirstN(D(), static_cast<size_t>(num_lanes)), all);
  }

  IntVec all;
};

template <class IntVec>
HWY_INLINE void add_bits(uint8_t* at, IntVec bits, int64_t shift) {
  const hn::DFromV<IntVec> d;
  const hn::Repartition<uint8_t, decltype(d)> bytes;
  const auto old = hn::BitCast(d, hn::LoadU(bytes, at));
  const auto shifted = hn::ShiftLeftSame(bits, static_cast<int>(shift));
  hn::StoreU(hn::BitCast(bytes, hn::Or(old, shifted)), bytes, at);
}

// Adds codes whose first slot, half and lane are those of `first`.
template <int kBits, class IntVec>
HWY_INLINE void add_slots(const SlotCodes<kBits, IntVec>& codes, CodePlace first, uint8_t* tile) {
  const int64_t in_row = 4 * (first.word / 2), half = 16 * (first.word % 2), row = first.row;
  if constexpr (kBits == 8) {
    const hn::DFromV<IntVec> d;
    const auto all = hn::ShiftLeftSame(codes.all, 8 * first.slot);
    add_bits(tile + 128 * row + in_row, hn::And(all, hn::Set(d, 0xffff)), half);
    const auto upper = hn::And(hn::ShiftRight<16>(all), hn::Set(d, 0xffff));
    add_bits(tile + 128 * row + 64 + in_row, upper, half);
  } else if constexpr (kBits == 4) {
    add_bits(tile + 64 * row + in_row, codes.all, half + 4 * first.slot);
  } else if constexpr (kBits == 2) {
    add_bits(tile + row / 2 * 64 + in_row, codes.all, half + row % 2 * 8 + 2 * first.slot);
  } else if (row % 4 < 3) {
    add_bits(tile + row / 4 * 192 + row % 4 * 64 + in_row, codes.all, half + 3 * first.slot);
  } else {  // a nibble of each number: the code of a slot, and a bit of that of the last slot
    const hn::DFromV<IntVec> d;
    const auto all = hn::ShiftLeftSame(codes.all, 3 * first.slot);
    for (int k = 0; k < 3; ++k) {
      const auto code = hn::And(hn::ShiftRightSame(all, 3 * k), hn::Set(d, 7));
      const auto last = hn::And(hn::ShiftRightSame(all, 6 + k), hn::Set(d, 8));
      add_bits(tile + row / 4 * 192 + k * 64 + in_row, hn::Or(code, last), half + 12);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant
HWY_AFTER_NAMESPACE();

#endif
