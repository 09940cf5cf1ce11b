#include "formats/layered_spec.h"

#include <fmt/format.h>

#include <cassert>

namespace kvquant {
namespace {

std::string layer_items(std::span<const Codec> codecs, const Codec& plain, const char* side) {
  std::string out;
  for (size_t first = 0; first < codecs.size();) {
    size_t end = first + 1;
    while (end < codecs.size() && codecs[end] == codecs[first]) ++end;
    if (!(codecs[first] == plain)) {
      out += first + 1 == end ? fmt::format(",layers={}", first)
                              : fmt::format(",layers={}-{}", first, end - 1);
      out += fmt::format(":{}={}", side, to_string(codecs[first]));
    }
    first = end;
  }
  return out;
}

// Which codec is best left out of the layers= items.
const Codec& plain_codec(std::span<const Codec> codecs, const char* side) {
  const Codec* best = &codecs[0];
  size_t best_size = SIZE_MAX;
  for (const Codec& codec : codecs) {
    const size_t size = to_string(codec).size() + layer_items(codecs, codec, side).size();
    if (size >= best_size) continue;
    best_size = size;
    best = &codec;
  }
  return *best;
}

}  // namespace

std::string layered_spec(std::span<const Codec> keys, std::span<const Codec> values,
                         const CacheSpec& windows) {
  assert(!keys.empty() && keys.size() == values.size());
  const Codec& key = plain_codec(keys, "k");
  const Codec& value = plain_codec(values, "v");
  std::string out =
      key == value ? to_string(key) : fmt::format("k={},v={}", to_string(key), to_string(value));
  if (windows.sink) out += fmt::format(",sink={}", *windows.sink);
  if (windows.recent) out += fmt::format(",recent={}", *windows.recent);
  if (windows.block != CacheSpec().block) out += fmt::format(",block={}", windows.block);
  return out + layer_items(keys, key, "k") + layer_items(values, value, "v");
}

}  // namespace kvquant
