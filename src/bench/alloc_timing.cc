#include "bench/alloc_timing.h"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <utility>

#include "base/check.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/threads.h"
#include "bench/growing_arrays.h"
#include "kvquant/sparse.h"

namespace kvquant {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kTokensPerRun = 32768;
constexpr int64_t kChunk = 64;  // tokens
// Blocked and doubling runs take milliseconds, so there are more of them for each that copies.
constexpr int kCheapRuns = 5;
constexpr int64_t kMostTokens = int64_t{1} << 17;  // copying more would take minutes

class Blocked {
 public:
  explicit Blocked(const AllocTimingShape& shape)
      : matrix_(shape.num_channels, shape.block_size, SparseValueType::kF16) {}
  void append_token(std::span<const int32_t> indices, std::span<const float> values) {
    matrix_.append_token(indices, values);
  }
  StandardSparse to_standard_csr() const { return matrix_.to_standard_csr(); }
  // Nothing is replaced: all of it counts as one array, which only gets longer.
  ArrayBytes array_bytes() const { return {matrix_.memory_footprint().total_bytes, 0, 0}; }

 private:
  BlockedCSRMatrix matrix_;
};

template <class Fn>
auto with_store(AllocVariant variant, const AllocTimingShape& shape, Fn&& fn) {
  switch (variant) {
    case AllocVariant::kBlocked: return fn([&] { return Blocked(shape); });
    case AllocVariant::kCopy: return fn([] { return CopyOnAppend(); });
    default: return fn([] { return DoublingVectors(); });
  }
}

// Ascending channels, one in each of `count` equal stretches; values from the tail of a normal.
StandardSparse make_tokens(const AllocTimingShape& shape, int64_t num_tokens) {
  const CounterRng rng(7);
  StandardSparse tokens;
  tokens.offsets.push_back(0);
  uint64_t i = 0;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t count = std::max<int64_t>(shape.outliers_per_token - 2 + rng.below(i++, 5), 0);
    for (int64_t j = 0; j < count; ++j, ++i) {
      const int64_t first = j * shape.num_channels / count;
      const int64_t width = (j + 1) * shape.num_channels / count - first;
      tokens.indices.push_back(
          static_cast<int32_t>(first + rng.below(i, static_cast<uint32_t>(width))));
      const float normal = rng.normals(i).first;
      tokens.values.push_back(round_to_half(normal < 0 ? normal - 2.5f : normal + 2.5f));
    }
    tokens.offsets.push_back(static_cast<int64_t>(tokens.indices.size()));
  }
  return tokens;
}

int64_t num_tokens_of(const StandardSparse& tokens) {
  return static_cast<int64_t>(tokens.offsets.size()) - 1;
}

template <class Store>
void append(Store& store, const StandardSparse& tokens, int64_t t) {
  const auto first = static_cast<size_t>(tokens.offsets[static_cast<size_t>(t)]);
  const auto count = static_cast<size_t>(tokens.offsets[static_cast<size_t>(t) + 1]) - first;
  store.append_token({tokens.indices.data() + first, count}, {tokens.values.data() + first, count});
}

struct Growth {
  std::vector<bool> grows;  // whether append t asked for memory
  int64_t peak_bytes = 0, final_bytes = 0;
};

// One untimed sequence, compared with what was appended.
Growth grow_and_check(AllocVariant variant, const AllocTimingShape& shape,
                      const StandardSparse& tokens) {
  return with_store(variant, shape, [&](auto make) {
    auto store = make();
    Growth growth;
    const int64_t num_tokens = num_tokens_of(tokens);
    for (int64_t t = 0; t < num_tokens; ++t) {
      const ArrayBytes before = store.array_bytes();
      append(store, tokens, t);
      const ArrayBytes now = store.array_bytes();
      growth.grows.push_back(now != before);
      growth.final_bytes = now[0] + now[1] + now[2];
      const int64_t peak = variant == AllocVariant::kBlocked ? growth.final_bytes
                                                             : peak_while_replacing(before, now);
      growth.peak_bytes = std::max(growth.peak_bytes, peak);
    }
    const StandardSparse again = store.to_standard_csr();
    if (again.offsets != tokens.offsets || again.indices != tokens.indices ||
        again.values != tokens.values) {
      throw std::runtime_error(
          fmt::format("bench alloc: {} returns other entries than it was given", name_of(variant)));
    }
    return growth;
  });
}

double nanoseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::nano>(duration).count();
}

// Median time from one reading of the clock to the next.
double clock_overhead_ns() {
  std::vector<double> between(1001);
  auto before = Clock::now();
  for (double& b : between) {
    const auto now = Clock::now();
    b = nanoseconds(now - before);
    before = now;
  }
  std::nth_element(between.begin(), between.begin() + 500, between.end());
  return between[500];
}

// Times of single appends, [num_sequences, num_tokens]. All sequences stay until the end, and what
// earlier runs gave back is returned to the system first: every run pays for fresh memory.
void time_appends(AllocVariant variant, const AllocTimingShape& shape, const StandardSparse& tokens,
                  std::span<double> times_ns) {
  const int64_t num_tokens = num_tokens_of(tokens);
  const auto num_sequences = static_cast<int64_t>(times_ns.size()) / num_tokens;
  malloc_trim(0);
  const double overhead_ns = clock_overhead_ns();
  with_store(variant, shape, [&](auto make) {
    std::vector<decltype(make())> stores;
    stores.reserve(static_cast<size_t>(num_sequences));
    size_t i = 0;
    for (int64_t s = 0; s < num_sequences; ++s) {
      auto& store = stores.emplace_back(make());
      auto before = Clock::now();
      for (int64_t t = 0; t < num_tokens; ++t) {
        append(store, tokens, t);
        const auto now = Clock::now();
        times_ns[i++] = std::max(nanoseconds(now - before) - overhead_ns, 0.0);
        before = now;
      }
    }
  });
}

// The value below which `share` of the sorted values lie.
double quantile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto n = static_cast<double>(values.size());
  const auto i = std::min(static_cast<size_t>(share * n), values.size() - 1);
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(i), values.end());
  return values[i];
}

double time_weighted_p99(std::vector<double> values, double total) {
  std::sort(values.begin(), values.end(), std::greater<>());
  double longer = 0;
  for (const double value : values) {
    longer += value;
    if (longer >= 0.01 * total) return value;
  }
  return 0;
}

AllocTiming figures_of(std::span<const double> times_ns, int64_t num_tokens,
                       const std::vector<bool>& grows) {
  AllocTiming timing;
  const auto num_sequences = static_cast<int64_t>(times_ns.size()) / num_tokens;
  const int64_t last = num_tokens / 10;
  std::vector<double> all(times_ns.begin(), times_ns.end()), chunks, growths;
  double total = 0, last_tenths = 0, chunk = 0;
  for (size_t i = 0; i < times_ns.size(); ++i) {
    const auto t = static_cast<int64_t>(i) % num_tokens;
    total += times_ns[i];
    chunk = t % kChunk == 0 ? times_ns[i] : chunk + times_ns[i];
    if (t % kChunk == kChunk - 1) chunks.push_back(chunk / kChunk);
    if (t >= num_tokens - last) last_tenths += times_ns[i];
    if (grows[static_cast<size_t>(t)]) growths.push_back(times_ns[i]);
  }
  timing.total_ms = total / static_cast<double>(num_sequences) / 1e6;
  timing.append_ns = last_tenths / static_cast<double>(num_sequences * last);
  timing.max_ns = *std::max_element(all.begin(), all.end());
  timing.time_p99_ns = time_weighted_p99(all, total);
  timing.median_ns = quantile(all, 0.5);
  timing.p99_ns = quantile(all, 0.99);
  timing.chunk_p99_ns = quantile(chunks, 0.99);
  timing.growth_p99_ns = quantile(growths, 0.99);
  return timing;
}

// An append does the same work in every run, so its time is its median over runs: interrupts and
// other processes, which come at any moment, stay out of the tail.
std::vector<double> medians_of(const std::vector<std::vector<double>>& runs) {
  std::vector<double> medians(runs[0].size()), values(runs.size());
  for (size_t i = 0; i < medians.size(); ++i) {
    for (size_t run = 0; run < runs.size(); ++run) values[run] = runs[run][i];
    medians[i] = quantile(values, 0.5);
  }
  return medians;
}

struct Case {
  AllocVariant variant;
  std::shared_ptr<const StandardSparse> tokens;
  Growth growth;
  std::vector<std::vector<double>> runs_ns;
};

void check_shape(const AllocTimingShape& shape, std::span<const int64_t> lengths) {
  for (const int64_t num_tokens : lengths) {
    check_arg(
        num_tokens >= 10 && num_tokens <= kMostTokens,
        fmt::format("bench alloc: a length is 10 to {} tokens, got {}", kMostTokens, num_tokens));
  }
  check_arg(
      shape.outliers_per_token >= 0 && shape.outliers_per_token <= shape.num_channels - 2,
      fmt::format("bench alloc: {} outliers per token, two more or fewer, don't fit {} channels",
                  shape.outliers_per_token, shape.num_channels));
  check_arg(shape.num_runs >= 1, "bench alloc: at least one run is needed");
}

}  // namespace

const char* name_of(AllocVariant variant) {
  switch (variant) {
    case AllocVariant::kBlocked: return "blocked";
    case AllocVariant::kCopy: return "copy";
    default: return "doubling";
  }
}

std::vector<AllocTiming> time_alloc(const AllocTimingShape& shape,
                                    std::span<const int64_t> lengths) {
  check_shape(shape, lengths);
  const ThreadPool pinned(1);
  std::vector<Case> cases;
  for (const int64_t num_tokens : lengths) {
    const auto tokens = std::make_shared<StandardSparse>(make_tokens(shape, num_tokens));
    for (const AllocVariant variant : kAllocVariants) {
      cases.push_back({variant, tokens, grow_and_check(variant, shape, *tokens), {}});
    }
  }
  for (int run = 0; run < kCheapRuns * shape.num_runs; ++run) {
    for (Case& c : cases) {
      if (c.variant == AllocVariant::kCopy && run % kCheapRuns != 0) continue;
      const int64_t num_tokens = num_tokens_of(*c.tokens);
      const int64_t num_sequences = std::max<int64_t>(kTokensPerRun / num_tokens, 1);
      c.runs_ns.emplace_back(static_cast<size_t>(num_sequences * num_tokens));
      time_appends(c.variant, shape, *c.tokens, c.runs_ns.back());
    }
  }
  std::vector<AllocTiming> timings;
  for (const Case& c : cases) {
    timings.push_back(figures_of(medians_of(c.runs_ns), num_tokens_of(*c.tokens), c.growth.grows));
    timings.back().variant = c.variant;
    timings.back().num_tokens = num_tokens_of(*c.tokens);
    timings.back().peak_bytes = c.growth.peak_bytes;
    timings.back().final_bytes = c.growth.final_bytes;
  }
  return timings;
}

std::vector<AllocCheck> check_alloc(std::span<const AllocTiming> timings) {
  std::vector<AllocCheck> checks;
  const auto find = [&](AllocVariant variant, int64_t num_tokens) {
    const auto at = std::find_if(timings.begin(), timings.end(), [&](const AllocTiming& t) {
      return t.variant == variant && t.num_tokens == num_tokens;
    });
    return at == timings.end() ? nullptr : &*at;
  };
  const auto at_most = [&](const char* name, int64_t num_tokens, double ratio, double target) {
    checks.push_back({name, num_tokens, ratio, target, "at most", ratio <= target});
  };
  const auto at_least = [&](const char* name, int64_t num_tokens, double ratio, double target) {
    checks.push_back({name, num_tokens, ratio, target, "at least", ratio >= target});
  };
  const AllocTiming* shortest = find(AllocVariant::kBlocked, 1024);
  const AllocTiming* longest = find(AllocVariant::kBlocked, kTokensPerRun);
  if (shortest != nullptr && longest != nullptr) {
    at_most("blocked, cost of an append / at 1024", kTokensPerRun,
            longest->append_ns / shortest->append_ns, 1.2);
  }
  for (const auto& [num_tokens, target] :
       {std::pair{1024, 1.2}, {2048, 2.5}, {8192, 8.0}, {32768, 25.0}}) {
    const AllocTiming* blocked = find(AllocVariant::kBlocked, num_tokens);
    const AllocTiming* copy = find(AllocVariant::kCopy, num_tokens);
    const AllocTiming* doubling = find(AllocVariant::kDoubling, num_tokens);
    if (blocked == nullptr || copy == nullptr || doubling == nullptr) continue;
    at_least("total time, copy / blocked", num_tokens, copy->total_ms / blocked->total_ms, target);
    at_most("peak bytes, blocked / doubling", num_tokens,
            static_cast<double>(blocked->peak_bytes) / static_cast<double>(doubling->peak_bytes),
            0.6);
    if (num_tokens == kTokensPerRun) {
      at_least("time-weighted p99, doubling / blocked", num_tokens,
               doubling->time_p99_ns / blocked->time_p99_ns, 10);
    }
  }
  return checks;
}

}  // namespace kvquant
