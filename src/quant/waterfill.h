// How many bits each component of a latent gets: reverse water-filling (Cover and Thomas, Elements
// of Information Theory, section 10.3.3) over the widths that codes have, 8, 4, 2 and 0, in groups
// of 16 components. A component of variance s that is left out costs what attention loses with it;
// one of b bits costs what rounding adds, of which attention averages most away.
#pragma once

#include <cstdint>
#include <span>

#include "formats/code_bands.h"

namespace kvquant {

inline constexpr int64_t kBandUnit = 16;  // components that share a width

// Energies per component, which fall as a rule; sums over KV heads.
struct ComponentEnergies {
  std::span<const double> dropped;  // error in the attention output without the component
  std::span<const double> noise;    // error there of noise as large as the component
};

// Channels of 8, 4 and 2 bits, the first components getting the most, so that the expected error is
// least and components have `bits` on average at most; the rest is left out. The last channels may
// be behind the last component: there are a multiple of 8. Throws std::invalid_argument when that
// is too little for 2 bits of any group.
CodeBands choose_bands(const ComponentEnergies& energies, double bits);

}  // namespace kvquant
