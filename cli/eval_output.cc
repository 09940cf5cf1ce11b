#include "cli/eval_output.h"

#include <fmt/format.h>

#include <cmath>

#include "cli/common.h"

namespace kvquant::cli {
namespace {

using Rows = std::vector<std::vector<std::string>>;

// JSON knows no infinity.
Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json to_json(const Comparison& c) {
  Json out = {{"mean_difference", c.paired.mean}, {"tested", c.is_tested}};
  if (c.is_tested) {
    out.update({{"confidence_level", c.confidence_level},
                {"ci_low", c.paired.confidence.low},
                {"ci_high", c.paired.confidence.high},
                {"p", c.p},
                {"t", finite(c.paired.t)},
                {"t_test_p", c.paired.p},
                {"detectable", c.paired.detectable},
                {"significant_loss", c.is_loss},
                {"significant_gain", c.is_gain}});
    if (c.is_right_or_wrong) {
      out["mcnemar"] = {
          {"lost", c.mcnemar.num_lost}, {"gained", c.mcnemar.num_gained}, {"p", c.mcnemar.p}};
    }
  }
  out["verdict"] = verdict(c);
  return out;
}

Json to_json(const CellScore& cell) {
  Json out = {{"context_length", cell.cell.length}};
  if (cell.cell.depth >= 0) out["depth"] = cell.cell.depth;
  out.update({{"count", cell.count},
              {"contains", cell.mean},
              {"wilson_low", cell.wilson.low},
              {"wilson_high", cell.wilson.high}});
  return out;
}

Json to_json(const TaskSummary& summary, const SpecResults& results, CacheMode mode,
             bool is_baseline) {
  Json out = spec_fields(results.spec, mode);
  out.update({{"task", summary.task},
              {"contains,none", summary.scores.mean},
              {"contains_stderr,none", summary.scores.standard_error()},
              {"wilson_low", summary.wilson.low},
              {"wilson_high", summary.wilson.high},
              {"count", summary.scores.count},
              {"compressed_tokens", results.compressed_tokens}});
  for (const CellScore& cell : summary.cells) out["cells"].push_back(to_json(cell));
  out["runs"] = {{"seeds", summary.seeds}, {"mean", summary.runs.mean}, {"sd", summary.runs.sd}};
  if (!is_baseline) out["versus_fp16"] = to_json(summary.versus_baseline);
  return out;
}

std::string percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

std::string cell_name(const EvalCell& cell) {
  if (cell.depth < 0) return fmt::format("{}", cell.length);
  return fmt::format("{} @ {:g}", cell.length, cell.depth);
}

// One table per task: a column per length, and depth where there are depths.
std::string task_tables(const std::vector<std::vector<TaskSummary>>& summaries,
                        std::span<const SpecResults> results) {
  std::string out;
  for (size_t task = 0; task < summaries[0].size(); ++task) {
    Rows rows(1);
    rows[0] = {summaries[0][task].task};
    for (const CellScore& cell : summaries[0][task].cells) rows[0].push_back(cell_name(cell.cell));
    rows[0].insert(rows[0].end(), {"all", "95% interval", "± over runs"});
    std::string verdicts;
    for (size_t s = 0; s < results.size(); ++s) {
      const TaskSummary& summary = summaries[s][task];
      std::vector<std::string> row = {results[s].spec.text};
      for (const CellScore& cell : summary.cells) row.push_back(percent(cell.mean));
      row.push_back(percent(summary.scores.mean));
      row.push_back(
          fmt::format("{:.1f} to {:.1f}", 100 * summary.wilson.low, 100 * summary.wilson.high));
      row.push_back(summary.runs.count < 2 ? "-" : fmt::format("{:.1f}", 100 * summary.runs.sd));
      rows.push_back(std::move(row));
      if (s > 0) {
        verdicts +=
            fmt::format("- {}: {}.\n", results[s].spec.text, verdict(summary.versus_baseline));
      }
    }
    out += (out.empty() ? "" : "\n") + format_table(rows, TableStyle::kMarkdown);
    if (!verdicts.empty()) out += "\nAgainst fp16:\n\n" + verdicts;
  }
  return out;
}

bool compresses(const CacheSpec& spec, int64_t num_layers) {
  for (int layer = 0; layer < num_layers; ++layer) {
    if (is_compressed(spec.key_of(layer)) || is_compressed(spec.value_of(layer))) return true;
  }
  return false;
}

}  // namespace

EvalReport make_report(const Model& model, std::span<const EvalSample> samples,
                       std::span<const SpecResults> results, CacheMode mode) {
  EvalReport out;
  out.results = Json::array();
  std::vector<std::vector<TaskSummary>> summaries;
  for (size_t s = 0; s < results.size(); ++s) {
    summaries.push_back(summarise(samples, results[s].results, results[0].results));
    const CacheSpec& spec = results[s].spec;
    if (compresses(spec, model.config().num_layers) && results[s].compressed_tokens == 0) {
      out.warnings.push_back(spec.text + ": no token was read compressed, so this is no result");
    }
    for (const TaskSummary& summary : summaries.back()) {
      out.results.push_back(to_json(summary, results[s], mode, s == 0));
      if (s > 0 && summary.versus_baseline.is_loss) {
        out.losses.push_back(
            fmt::format("{}, {}: {}", spec.text, summary.task, verdict(summary.versus_baseline)));
      }
    }
  }
  for (const TaskSummary& summary : summaries[0]) {
    out.num_samples[summary.task] = {{"effective", summary.scores.count}};
  }
  out.markdown = task_tables(summaries, results);
  return out;
}

}  // namespace kvquant::cli
