// kvquant demo: the main job in about a minute.
#include "eval/demo.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/file.h"
#include "base/timer.h"
#include "cli/commands.h"
#include "cli/common.h"

namespace kvquant::cli {
namespace {

std::string one_line(std::string text) {
  const size_t begin = text.find_first_not_of(" \n");
  text = begin == std::string::npos ? "" : text.substr(begin);
  return text.substr(0, text.find('\n'));
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

Json to_json(const DemoRow& row) {
  Json out = spec_fields(row.quality.spec, CacheMode::kStrict);
  out.update({{"true_bits", row.quality.true_bits},
              {"cache_bytes", row.recall.cache_bytes},
              {"perplexity", row.quality.perplexity},
              {"kl_mean", row.quality.kl_mean},
              {"top1_agreement", row.quality.top1_agreement},
              {"recall_correct", row.recall.num_correct},
              {"recall_answers", row.recall.answers},
              {"prefill_tokens_per_s", rate(row.recall.num_prompt_tokens, row.recall.prompt_s)},
              {"decode_tokens_per_s", rate(row.recall.num_decoded_tokens, row.recall.decode_s)}});
  return out;
}

void print_result(const DemoResult& result) {
  std::vector<std::vector<std::string>> rows = {{"cache", "bits", "prompt cache", "perplexity",
                                                 "KL", "top-1", "recall", "prefill/s", "decode/s"}};
  for (const DemoRow& row : result.rows) {
    const auto& q = row.quality;
    const auto& r = row.recall;
    rows.push_back({q.spec.text, fmt::format("{:.2f}", q.true_bits), format_bytes(r.cache_bytes),
                    fmt::format("{:.2f}", q.perplexity), fmt::format("{:.4f}", q.kl_mean),
                    fmt::format("{:.1f}%", 100 * q.top1_agreement),
                    fmt::format("{}/{}", r.num_correct, result.facts.size()),
                    fmt::format("{:.0f}", rate(r.num_prompt_tokens, r.prompt_s)),
                    fmt::format("{:.0f}", rate(r.num_decoded_tokens, r.decode_s))});
  }
  fmt::print("{}", format_table(rows));
}

// What the compressed rows were calibrated on.
std::string calibration_note(const Model& model, const DemoResult& result) {
  if (model.calibration() == nullptr) {
    return "Not calibrated: the text leaves too little for it.";
  }
  if (result.calibration_s == 0)
    return fmt::format("The model is {}.", describe_calibration(model));
  const CalibrationInfo& info = model.calibration()->info;
  return fmt::format(
      "Calibrated in {:.1f} s on the end of the story, {} × {} tokens, which perplexity doesn't "
      "read.",
      result.calibration_s, info.num_samples, info.seq_len);
}

void print_answers(const DemoResult& result) {
  if (result.facts.empty()) return;
  size_t width = 0;
  for (const DemoRow& row : result.rows) width = std::max(width, row.quality.spec.text.size());
  fmt::print("\n{}\n", result.facts[0].question);
  for (const DemoRow& row : result.rows) {
    fmt::print("  {:{}} {}\n", row.quality.spec.text, width, one_line(row.recall.answers[0]));
  }
}

int run(const CommonOptions& options) {
  auto specs = specs_of(options, {});
  const bool has_default_rows = specs.empty();
  if (has_default_rows) {
    specs = specs_of(options, {"fp16", "nuq4-1%", "k=nuq4-1%,v=had+nuq4", "nuq3-1%", "nuq2-1%"});
  }
  const Timer timer;
  const std::string text = read_text(find_asset("sample.txt"));
  const std::string facts_path = find_asset("sample_facts.json");
  const auto facts = facts_from_json(read_text(facts_path), facts_path);
  Model model = load_model(options);
  if (!options.quiet) {
    fmt::print(stderr, "model {} ({}), {} threads, loaded in {:.1f} s\n", model.config().name,
               model.path(), model.pool().num_threads(), timer.seconds());
  }
  DemoOptions demo{
      .specs = specs, .ubatch = options.ubatch, .context = options.context, .seed = options.seed};
  if (has_default_rows) {  // three of four directions; the first token's value lies along others
    demo.low_rank = parse_spec(fmt::format("v=pca{}+int8,sink=1", model.config().head_dim * 3 / 4));
  }
  const DemoResult result = run_demo(model, text, facts, demo, [&](const std::string& stage) {
    return progress_on_stderr(options, stage);
  });

  if (result.calibration_overlap) warn_of_overlap();

  Json config = common_config(options, model);
  config["calibration_s"] = result.calibration_s;
  Json document = make_document("demo", model_info(model), config);
  document["calibration_overlap"] = result.calibration_overlap;
  for (const DemoRow& row : result.rows) document["results"].push_back(to_json(row));
  write_json(options, document);
  if (json_on_stdout(options)) return kDone;

  fmt::print(
      "A story of {} tokens is read into each cache; then the model is asked for facts in "
      "it.\n{}\n\n",
      result.prompt_tokens, calibration_note(model, result));
  print_result(result);
  print_answers(result);
  fmt::print(
      "\nbits: all bytes of a full window per stored value. perplexity, KL (nats, against "
      "fp16), top-1:\nevery token read compressed. recall, speed: as served. {:.0f} s in "
      "all.\n",
      timer.seconds());
  return kDone;
}

}  // namespace

void add_demo(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<CommonOptions>();
  auto* command =
      app.add_subcommand("demo", "a compressed cache at work on a real model, in about a minute");
  add_common_flags(*command, *options, kModelFlags | kSpecFlags | kRunFlags);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
