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

Json to_json(const CellScore& cell, const std::string& metric) {
  Json out = {{"context_length", cell.cell.length}};
  if (cell.cell.depth >= 0) out["depth"] = cell.cell.depth;
  out.update({{"count", cell.count},
              {metric, cell.mean},
              {"wilson_low", cell.wilson.low},
              {"wilson_high", cell.wilson.high}});
  return out;
}

// A mean and its standard error as lm-eval names them.
void add_score(Json& out, const std::string& name, const Moments& scores) {
  out[name + ",none"] = scores.mean;
  out[name + "_stderr,none"] = scores.standard_error();
}

void add_extra(Json& out, const std::string& name, const ExtraScore& extra, bool is_baseline) {
  add_score(out, name, extra.scores);
  if (name == "nll") out["perplexity,none"] = finite(std::exp(extra.scores.mean));
  if (is_baseline) return;
  Json versus = to_json(extra.versus_baseline);
  if (name == "nll") {  // more of it is worse, and it has no points
    for (const char* key : {"verdict", "significant_loss", "significant_gain", "detectable"}) {
      versus.erase(key);
    }
  }
  out["versus_fp16_" + name] = versus;
}

Json to_json(const TaskSummary& summary, const SpecResults& results, bool is_baseline) {
  Json out = spec_fields(results.spec, summary.mode);
  out["task"] = summary.task;
  if (summary.is_group) out["group"] = true;
  out["metric"] = summary.metric;
  add_score(out, summary.metric, summary.scores);
  for (const auto& [name, extra] : summary.extra) add_extra(out, name, extra, is_baseline);
  out.update({{"wilson_low", summary.wilson.low},
              {"wilson_high", summary.wilson.high},
              {"count", summary.scores.count},
              {"compressed_tokens", summary.compressed_tokens}});
  for (const CellScore& cell : summary.cells) out["cells"].push_back(to_json(cell, summary.metric));
  out["runs"] = {{"seeds", summary.seeds}, {"mean", summary.runs.mean}, {"sd", summary.runs.sd}};
  if (is_baseline) return out;
  if (summary.runs.count > 1) {
    const PairedTest& test = summary.runs_versus_baseline;
    out["runs"]["versus_fp16"] = {{"mean_difference", test.mean},
                                  {"ci_low", test.confidence.low},
                                  {"ci_high", test.confidence.high},
                                  {"t", finite(test.t)},
                                  {"p", test.p}};
  }
  out["versus_fp16"] = to_json(summary.versus_baseline);
  return out;
}

std::string percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

std::string cell_name(const EvalCell& cell) {
  if (cell.depth < 0) return fmt::format("{}", cell.length);
  return fmt::format("{} @ {:g}", cell.length, cell.depth);
}

// Data that comes as it is has one cell, which says nothing.
bool has_cells(const TaskSummary& summary) {
  return summary.cells.size() > 1 || summary.cells[0].cell.length > 0;
}

std::vector<std::string> header_of(const TaskSummary& summary) {
  std::vector<std::string> row = {summary.task};
  if (has_cells(summary)) {
    for (const CellScore& cell : summary.cells) row.push_back(cell_name(cell.cell));
  }
  row.insert(row.end(), {has_cells(summary) ? "all" : summary.metric, "95% interval"});
  for (const auto& [name, extra] : summary.extra) {
    row.push_back(name == "nll" ? "perplexity" : name);
  }
  row.push_back("± over runs");
  return row;
}

std::vector<std::string> row_of(const TaskSummary& summary, const std::string& spec) {
  std::vector<std::string> row = {spec};
  if (has_cells(summary)) {
    for (const CellScore& cell : summary.cells) row.push_back(percent(cell.mean));
  }
  row.push_back(percent(summary.scores.mean));
  row.push_back(
      fmt::format("{:.1f} to {:.1f}", 100 * summary.wilson.low, 100 * summary.wilson.high));
  for (const auto& [name, extra] : summary.extra) {
    const double mean = extra.scores.mean;
    row.push_back(name == "nll" ? fmt::format("{:.3f}", std::exp(mean)) : percent(mean));
  }
  row.push_back(summary.runs.count < 2 ? "-" : fmt::format("{:.1f}", 100 * summary.runs.sd));
  return row;
}

std::string verdicts_of(const TaskSummary& summary, const std::string& spec) {
  std::string out = fmt::format("- {}: {}.\n", spec, verdict(summary.versus_baseline));
  const auto norm = summary.extra.find("acc_norm");
  if (norm != summary.extra.end()) {
    out += fmt::format("- {}, acc_norm: {}.\n", spec, verdict(norm->second.versus_baseline));
  }
  if (summary.runs.count > 1) {
    const PairedTest& test = summary.runs_versus_baseline;
    out += fmt::format(
        "- {}, means of {} runs: {:+.1f} points, 95% interval {:+.1f} to {:+.1f}, "
        "p = {:.2g}.\n",
        spec, summary.runs.count, 100 * test.mean, 100 * test.confidence.low,
        100 * test.confidence.high, test.p);
  }
  return out;
}

// One table per task: a column per length, and depth where there are depths.
std::string task_tables(const std::vector<std::vector<TaskSummary>>& summaries,
                        std::span<const SpecResults> results) {
  std::string out;
  for (size_t task = 0; task < summaries[0].size(); ++task) {
    Rows rows = {header_of(summaries[0][task])};
    std::string verdicts;
    for (size_t s = 0; s < results.size(); ++s) {
      const TaskSummary& summary = summaries[s][task];
      rows.push_back(row_of(summary, results[s].spec.text));
      if (s > 0) verdicts += verdicts_of(summary, results[s].spec.text);
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
                       std::span<const SpecResults> results) {
  EvalReport out;
  out.results = Json::array();
  std::vector<std::vector<TaskSummary>> summaries;
  for (size_t s = 0; s < results.size(); ++s) {
    summaries.push_back(summarise(samples, results[s], results[0]));
    const CacheSpec& spec = results[s].spec;
    const bool is_compressed = compresses(spec, model.config().num_layers);
    for (const TaskSummary& summary : summaries.back()) {
      if (is_compressed && summary.compressed_tokens == 0) {
        out.warnings.push_back(fmt::format(
            "{}, {}: no token was read compressed, so this is no result", spec.text, summary.task));
      }
      out.results.push_back(to_json(summary, results[s], s == 0));
      if (s > 0 && summary.versus_baseline.is_loss) {
        out.losses.push_back(
            fmt::format("{}, {}: {}", spec.text, summary.task, verdict(summary.versus_baseline)));
      }
    }
  }
  for (const TaskSummary& summary : summaries[0]) {
    if (summary.is_group) continue;
    out.num_samples[summary.task] = {{"effective", summary.scores.count}};
  }
  out.markdown = task_tables(summaries, results);
  return out;
}

}  // namespace kvquant::cli
