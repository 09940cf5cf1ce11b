#include "eval/allocate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "quant/knapsack.h"

namespace kvquant {
namespace {

constexpr double kNearBits = 0.5;

double bits_of(int64_t bytes, const SensitivityTable& table) {
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(table.num_values);
}

// Group 2 * layer + side.
struct Groups {
  std::vector<KnapsackGroup> groups;
  std::vector<std::vector<const Sensitivity*>> rows;
};

Groups groups_of(const SensitivityTable& table) {
  Groups out;
  out.groups.resize(static_cast<size_t>(2 * table.num_layers));
  out.rows.resize(out.groups.size());
  for (const Sensitivity& row : table.rows) {
    const auto g = static_cast<size_t>(2 * row.layer + (row.side == KvSide::kKey ? 0 : 1));
    out.groups[g].push_back({row.bytes, row.kl_mean});
    out.rows[g].push_back(&row);
  }
  for (size_t g = 0; g < out.groups.size(); ++g) {
    check_arg(!out.groups[g].empty(), fmt::format("allocate: {} of layer {} were not measured",
                                                  g % 2 == 0 ? "keys" : "values", g / 2));
  }
  return out;
}

// Codecs of one side that every layer has, with the sums over layers.
struct Uniform {
  Codec codec;
  int64_t bytes = 0;
  double kl = 0;
};

std::vector<Uniform> uniform_sides(const SensitivityTable& table, KvSide side) {
  std::vector<Uniform> out;
  for (const Sensitivity& first : table.rows) {
    if (first.layer != 0 || first.side != side) continue;
    Uniform sum{.codec = first.codec};
    bool is_everywhere = true;
    for (int64_t layer = 0; layer < table.num_layers && is_everywhere; ++layer) {
      const Sensitivity* row = table.find(layer, side, first.codec);
      is_everywhere = row != nullptr;
      if (!is_everywhere) break;
      sum.bytes += row->bytes;
      sum.kl += row->kl_mean;
    }
    if (is_everywhere) out.push_back(sum);
  }
  return out;
}

}  // namespace

BitsRange reachable_bits(const SensitivityTable& table) {
  int64_t least = 0, most = 0;
  for (const KnapsackGroup& group : groups_of(table).groups) {
    const auto [low, high] = std::minmax_element(
        group.begin(), group.end(),
        [](const KnapsackOption& a, const KnapsackOption& b) { return a.bytes < b.bytes; });
    least += low->bytes;
    most += high->bytes;
  }
  return {bits_of(least, table), bits_of(most, table)};
}

Allocation allocate_bits(const SensitivityTable& table, double bits) {
  const BitsRange range = reachable_bits(table);
  check_arg(std::isfinite(bits) && bits >= range.least,
            fmt::format("allocate: {:.3g} bits are less than the {:.2f} of the smallest candidates",
                        bits, range.least));
  const Groups groups = groups_of(table);
  const double budget = std::min(bits, range.most) * static_cast<double>(table.num_values) / 8;
  // Up by rounding errors alone.
  const auto choice =
      solve_knapsack(groups.groups, static_cast<int64_t>(std::floor(budget * (1 + 1e-12))));
  Allocation out;
  for (size_t g = 0; g < groups.groups.size(); ++g) {
    (g % 2 == 0 ? out.keys : out.values).push_back(groups.rows[g][choice.options[g]]->codec);
  }
  out.bytes = choice.bytes;
  out.bits = bits_of(choice.bytes, table);
  out.kl_sum = choice.cost;
  out.kl_lower_bound = choice.lower_bound;
  return out;
}

std::vector<Allocation> uniform_allocations(const SensitivityTable& table) {
  std::vector<Allocation> out;
  const auto layers = static_cast<size_t>(table.num_layers);
  const auto values = uniform_sides(table, KvSide::kValue);
  for (const Uniform& key : uniform_sides(table, KvSide::kKey)) {
    for (const Uniform& value : values) {
      out.push_back({.keys = std::vector<Codec>(layers, key.codec),
                     .values = std::vector<Codec>(layers, value.codec),
                     .bytes = key.bytes + value.bytes,
                     .bits = bits_of(key.bytes + value.bytes, table),
                     .kl_sum = key.kl + value.kl,
                     .kl_lower_bound = key.kl + value.kl});
    }
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const Allocation& a, const Allocation& b) { return a.bytes < b.bytes; });
  return out;
}

std::vector<Allocation> uniform_rivals(const SensitivityTable& table, double bits, int64_t count) {
  std::vector<Allocation> within;
  std::optional<Allocation> above;
  for (const Allocation& uniform : uniform_allocations(table)) {
    if (uniform.bits <= bits) {
      within.push_back(uniform);
    } else if (!above && uniform.bits <= bits + kNearBits) {
      above = uniform;
    }
  }
  std::stable_sort(within.begin(), within.end(),
                   [](const Allocation& a, const Allocation& b) { return a.kl_sum < b.kl_sum; });
  if (std::ssize(within) > count) within.resize(static_cast<size_t>(count));
  if (above) within.push_back(*above);
  return within;
}

}  // namespace kvquant
