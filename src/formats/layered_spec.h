// From one codec per layer and side back to a spec: runs of layers as layers= items.
#pragma once

#include <span>
#include <string>

#include "kvquant/spec.h"

namespace kvquant {

// The shortest text of its form: for each side the codec that saves most text as a plain item, and
// one layers= item per run of layers that have another one ("k=nuq3-1%,v=had+nuq3,sink=4,
// layers=0-3:v=had+nuq4"). Sink, recent and block are those of `windows` where it sets them; its
// codecs don't count. Requires as many keys as values, one at least.
std::string layered_spec(std::span<const Codec> keys, std::span<const Codec> values,
                         const CacheSpec& windows);

}  // namespace kvquant
