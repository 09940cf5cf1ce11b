// kvquant presets: lists the settings that come with the program, or shows one.
#include "model/presets.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string name;
};

std::string percent(const std::optional<double>& share) {
  return share ? fmt::format("{:+.2f}%", 100 * *share) : "-";
}
std::string number(const std::optional<double>& value, int digits) {
  return value ? fmt::format("{:.{}f}", *value, digits) : "-";
}

Json document_of(const std::vector<Preset>& presets) {
  Json document = make_document("presets", nullptr, Json::object());
  document["results"] = Json::array();
  for (const Preset& preset : presets) {
    document["results"].push_back(Json::parse(preset_json(preset)));
    document["results"].back()["path"] = preset.path.empty() ? Json(nullptr) : Json(preset.path);
  }
  return document;
}

void print_list(const std::vector<Preset>& presets) {
  std::vector<std::vector<std::string>> rows = {
      {"model", "name", "spec", "ratio", "bits", "Δ perplexity", "KL"}};
  for (const Preset& preset : presets) {
    rows.push_back({preset.model, preset.name, preset.spec,
                    fmt::format("{:.2f}x", preset.compression_ratio), number(preset.true_bits, 2),
                    percent(preset.ppl_delta), number(preset.kl_divergence, 4)});
  }
  fmt::print("{}", format_table(rows));
  if (presets.empty()) fmt::print("no presets: kvquant tune makes them\n");
}

void print_measured(const Preset& preset) {
  if (!preset.ppl_delta) {
    fmt::print("  not measured: ratios are those of one more token\n");
    return;
  }
  fmt::print("  perplexity  {} -> {} ({}", number(preset.baseline_ppl, 4),
             number(preset.compressed_ppl, 4), percent(preset.ppl_delta));
  if (preset.ppl_delta_low && preset.ppl_delta_high) {
    fmt::print(", 95% of {} to {}", percent(preset.ppl_delta_low), percent(preset.ppl_delta_high));
  }
  fmt::print("), budget {}\n", percent(preset.target_ppl_delta));
  fmt::print("  KL          {} nats, top-1 {}\n", number(preset.kl_divergence, 5),
             preset.top1_agreement ? fmt::format("{:.2f}%", 100 * *preset.top1_agreement) : "-");
  fmt::print(
      "  on          {} tokens of {} from token {} on, windows of {}, strict (sha256 {}...)\n",
      preset.eval_tokens, preset.eval_text.empty() ? "a text" : preset.eval_text, preset.eval_begin,
      preset.window, preset.eval_text_sha256.substr(0, 16));
}

void print_one(const Preset& preset) {
  fmt::print("{}\n", preset.name);
  fmt::print("  model       {} ({} layers, head_dim {})\n", preset.model, preset.num_layers,
             preset.head_dim);
  fmt::print("  spec        {}\n", preset.spec);
  fmt::print("  keeps       {}: rank {} of {}, {} bits\n", to_string(preset.target), preset.rank,
             preset.head_dim, preset.bits);
  fmt::print("  ratio       {:.2f}x of keys and values, {:.2f}x of what is compressed\n",
             preset.compression_ratio, preset.side_compression);
  print_measured(preset);
  const std::string calibration = calibration_path(preset);
  fmt::print("  calibration {}\n", calibration.empty() ? "none" : calibration);
  if (!preset.path.empty()) fmt::print("  file        {}\n", preset.path);
  if (preset.pareto.empty()) return;
  std::vector<std::vector<std::string>> rows = {{"  beside it", "bits", "Δ perplexity", "KL"}};
  for (const ParetoPoint& point : preset.pareto) {
    rows.push_back({"  " + point.spec, fmt::format("{:.2f}", point.true_bits),
                    percent(point.ppl_delta), fmt::format("{:.4f}", point.kl_divergence)});
  }
  fmt::print("{}", format_table(rows));
}

int run(const Options& options) {
  std::vector<Preset> presets;
  if (!options.name.empty()) {
    presets.push_back(get_preset_info(options.common.model, options.name));
  } else {
    presets = list_presets();
    if (!options.common.model.empty()) {
      const auto checkpoint = open_checkpoint(find_model(options.common.model));
      std::erase_if(
          presets, [&](const Preset& preset) { return preset.model != checkpoint->config().name; });
    }
  }
  write_json(options.common, document_of(presets));
  if (json_on_stdout(options.common)) return kDone;
  options.name.empty() ? print_list(presets) : print_one(presets[0]);
  return kDone;
}

}  // namespace

void add_presets(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "presets", "list the presets that come with the program, or show one of them");
  command->add_option("name", options->name,
                      "name or file; r120-vonly, r96-kv-int8 and the like stand for a rank");
  command->add_option("-m,--model", options->common.model,
                      "model whose presets are meant (default: of all; for a name as elsewhere)");
  add_common_flags(*command, options->common, 0);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
