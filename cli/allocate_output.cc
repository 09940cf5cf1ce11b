#include "cli/allocate_output.h"

#include <fmt/format.h>

#include <cmath>

#include "cli/common.h"

namespace kvquant::cli {
namespace {

using Rows = std::vector<std::vector<std::string>>;

struct Column {
  KvSide side;
  Codec codec;
};

std::vector<Column> columns_of(const SensitivityOptions& options) {
  std::vector<Column> out;
  for (const Codec& codec : options.keys) out.push_back({KvSide::kKey, codec});
  for (const Codec& codec : options.values) out.push_back({KvSide::kValue, codec});
  return out;
}

const char* name_of(KvSide side) { return side == KvSide::kKey ? "k" : "v"; }

}  // namespace

std::string sensitivity_text(const SensitivityTable& table, const SensitivityOptions& options) {
  const auto columns = columns_of(options);
  Rows rows = {{"layer"}};
  for (const Column& column : columns) {
    rows[0].push_back(fmt::format("{}={}", name_of(column.side), to_string(column.codec)));
  }
  std::vector<std::string> sums = {"all"}, bits = {"bits"};
  for (int64_t layer = 0; layer < table.num_layers; ++layer) {
    rows.push_back({std::to_string(layer)});
    for (const Column& column : columns) {
      rows.back().push_back(
          fmt::format("{:.5f}", table.find(layer, column.side, column.codec)->kl_mean));
    }
  }
  for (const Column& column : columns) {
    double kl = 0, bytes = 0;
    for (int64_t layer = 0; layer < table.num_layers; ++layer) {
      const Sensitivity* row = table.find(layer, column.side, column.codec);
      kl += row->kl_mean;
      bytes += static_cast<double>(row->bytes);
    }
    sums.push_back(fmt::format("{:.5f}", kl));
    bits.push_back(fmt::format("{:.2f}", 16 * bytes / static_cast<double>(table.num_values)));
  }
  rows.push_back(sums);
  rows.push_back(bits);
  return format_table(rows);
}

Json sensitivity_json(const SensitivityTable& table) {
  Json rows = Json::array();
  for (const Sensitivity& row : table.rows) {
    rows.push_back({{"layer", row.layer},
                    {"side", name_of(row.side)},
                    {"codec", to_string(row.codec)},
                    {"kl_mean", row.kl_mean},
                    {"bytes", row.bytes}});
  }
  return rows;
}

std::string comparison_text(const std::vector<CheckedAllocation>& checked) {
  Rows rows = {{"spec", "bits", "sum of KL alone", "KL mean", "KL 99%", "ΔPPL", "top-1"}};
  const CheckedAllocation& mixture = checked[0];
  const CheckedAllocation* best = nullptr;  // of the uniform ones within the budget
  for (const CheckedAllocation& c : checked) {
    rows.push_back({c.is_mixture ? "mixture" : c.spec.text,
                    fmt::format("{:.3f}", c.result.true_bits),
                    fmt::format("{:.5f}", c.allocation.kl_sum),
                    fmt::format("{:.5f}", c.result.kl_mean), fmt::format("{:.4f}", c.result.kl_p99),
                    fmt::format("{:+.2f}%", 100 * c.result.ppl_delta_rel),
                    fmt::format("{:.2f}%", 100 * c.result.top1_agreement)});
    if (c.is_mixture || c.allocation.bits > c.budget_bits) continue;
    if (best == nullptr || c.result.kl_mean < best->result.kl_mean) best = &c;
  }
  std::string out = format_table(rows);
  if (best != nullptr) {
    const double change = mixture.result.kl_mean / best->result.kl_mean - 1;
    out += fmt::format("{:.1f}% {} divergence than the best uniform spec within {:g} bits, {}\n",
                       100 * std::abs(change), change <= 0 ? "less" : "MORE", mixture.budget_bits,
                       best->spec.text);
  }
  if (mixture.result.true_bits > mixture.budget_bits) {
    out += fmt::format("{:.3f} bits on this text: it has more outliers than what was measured on\n",
                       mixture.result.true_bits);
  }
  return out + mixture.spec.text + "\n";
}

Json to_json(const CheckedAllocation& c, CacheMode mode) {
  Json out = spec_fields(c.spec, mode);
  out.update({{"budget_bits", c.budget_bits},
              {"is_mixture", c.is_mixture},
              {"selection_bits", c.allocation.bits},
              {"selection_kl_sum", c.allocation.kl_sum},
              {"selection_kl_lower_bound", c.allocation.kl_lower_bound},
              {"perplexity", c.result.perplexity},
              {"ppl_delta_rel", c.result.ppl_delta_rel},
              {"kl_mean", c.result.kl_mean},
              {"kl_p99", c.result.kl_p99},
              {"top1_agreement", c.result.top1_agreement},
              {"true_bits", c.result.true_bits},
              {"cache_bytes", c.result.cache_bytes},
              {"tokens", c.result.tokens}});
  return out;
}

}  // namespace kvquant::cli
