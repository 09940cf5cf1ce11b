// What a sweep measures: configurations of a prompt, a batch and a cache spec, from a grid file or
// by name. docs/sweeps.md has the format.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvquant/spec.h"

namespace kvquant {

struct SweepPoint {
  int64_t prompt = 0;  // tokens, at least 1
  int64_t batch = 1;   // 0: the largest that a memory budget allows ("max")
  int64_t gen = 0;     // tokens that are decoded after the prompt
  CacheSpec spec;      // with the grid's block, sink and recent
};

constexpr int64_t kDefaultGen = 32;

// {"prompt": [...], "batch": [... or "max"], "kv": [...]}, optionally "gen", "block", "sink" and
// "recent", each a number or a list of them, "description" and "quality" (see parse_quality): every
// combination, prompts outermost, specs innermost, each once. Throws FormatError with the path to
// the key.
std::vector<SweepPoint> parse_grid(const std::string& text, const std::string& path);

// "len16384_batch16_nuq3-1%": also "len512_batchmax_gen64_fp16". Throws std::invalid_argument with
// what was expected.
SweepPoint parse_point_name(const std::string& name);
// What parse_point_name reads; _gen is left out when it is the default.
std::string point_name(const SweepPoint& point);

// A small grid that takes minutes on two cores.
std::vector<SweepPoint> quick_grid();

}  // namespace kvquant
