// kvquant tune: the smallest cache within a budget of perplexity, as a preset.
#include "eval/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <memory>
#include <set>

#include "base/check.h"
#include "base/file.h"
#include "base/quote.h"
#include "cli/calibrate_in_memory.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "eval/disjoint_texts.h"
#include "eval/evaluate.h"
#include "eval/tune_candidates.h"
#include "eval/tune_preset.h"
#include "kvquant/error.h"
#include "quant/compact_calibration.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  CommonOptions common;
  double target_ppl_delta = 0.05;
  std::string target = "v";
  std::vector<std::string> rank_grid;
  std::vector<int64_t> bits = {16, 8, 4};
  std::vector<std::string> codecs;
  std::optional<int64_t> sink, recent;
  std::vector<std::string> data;
  std::string test, name, output;
  int64_t windows = 8, test_windows = 8, samples = 16, seq_len = 0;
};

// What lies beside the preset.
struct Files {
  std::string preset;
  std::string log, whole_calibration;  // of the work, for a run that goes on
};

Files files_of(const Options& options) {
  const auto beside = [&](const char* extension) {
    return fs::path(options.output).replace_extension(extension).string();
  };
  return {options.output, beside(".tune.jsonl"), beside(".tune.safetensors")};
}

std::vector<int64_t> ranks_of(const std::vector<std::string>& grid) {
  std::vector<int64_t> ranks;
  for (const std::string& text : grid) {
    int64_t rank = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, rank);
    check_arg(error == std::errc() && stop == end,
              "--rank-grid " + quote(text) + " is neither a rank nor none");
    ranks.push_back(rank);
  }
  return ranks;
}

std::vector<CacheSpec> candidates_of(const Options& options, const ModelConfig& config) {
  CandidateOptions candidates{.target = parse_preset_target(options.target),
                              .bits = options.bits,
                              .codecs = options.codecs,
                              .specs = options.common.kv,
                              .sink = options.sink,
                              .recent = options.recent};
  const bool has_ranks = options.rank_grid != std::vector<std::string>{"none"};
  if (has_ranks) candidates.ranks = ranks_of(options.rank_grid);
  if (!has_ranks) candidates.bits.clear();
  auto specs = tune_candidates(candidates, config.num_layers, config.head_dim);
  std::set<std::string> told;
  for (const CacheSpec& spec : specs) {
    for (const std::string& warning : spec_warnings(spec)) {
      if (told.insert(warning).second) fmt::print(stderr, "kvquant: warning: {}\n", warning);
    }
  }
  return specs;
}

TokenizedText read_tokens(const std::string& file, const Model& model) {
  return {file, model.tokenizer().encode(read_utf8(file), Tokenizer::Special::kAsText,
                                         Tokenizer::Bos::kNever)};
}

int64_t num_bos(const Model& model) {
  const TokenizerData& data = model.tokenizer().data();
  return data.add_bos && data.bos >= 0 ? 1 : 0;
}

int64_t window_of(const Options& options, const Model& model) {
  const int64_t longest = model.config().max_context;
  const int64_t window =
      options.common.context > 0 ? options.common.context : std::min<int64_t>(2048, longest);
  check_arg(2 <= window && window <= longest,
            fmt::format("tune: windows of {} tokens are not in [2, {}], the model's context",
                        window, longest));
  return window;
}

CalibrateOptions calibrate_options(const Options& options, const Model& model) {
  return {.num_samples = options.samples,
          .seq_len = options.seq_len > 0 ? options.seq_len
                                         : std::min<int64_t>(2048, model.config().max_context),
          .seed = options.common.seed,
          .ubatch = options.common.ubatch};
}

TuneTexts texts_of(const Options& options, const Model& model, const CalibrationInfo* made) {
  std::vector<std::string> files = options.data;
  if (files.empty()) files = {find_asset("sample.txt")};
  std::vector<TokenizedText> texts;
  for (const std::string& file : files) texts.push_back(read_tokens(file, model));
  std::optional<TokenizedText> test;
  if (!options.test.empty()) test = read_tokens(options.test, model);
  const int64_t bos = num_bos(model);
  return split_texts(texts, test ? &*test : nullptr, made,
                     {.window_tokens = window_of(options, model) - bos,
                      .selection_windows = options.windows,
                      .test_windows = options.test_windows,
                      .calibration_tokens = calibrate_options(options, model).seq_len - bos});
}

// That of an earlier run, if it is the same; else a new one, kept for a later run.
Calibration make_calibration(const Options& options, Model& model, const TuneTexts& texts,
                             const std::string& path) {
  const CalibrateOptions how = calibrate_options(options, model);
  if (fs::exists(path)) {
    Calibration known = load_calibration(path);
    if (known.info.kvquant_version == version() &&
        known.info.model_fingerprint == model.checkpoint().fingerprint() &&
        was_made_from(known.info, texts.calibration, how, num_bos(model))) {
      if (!options.common.quiet) fmt::print(stderr, "kvquant: calibrated already: {}\n", path);
      return known;
    }
  }
  Calibration calibration = calibrate_in_memory(model, texts.calibration, how,
                                                progress_on_stderr(options.common, "calibrate"));
  calibration.info.kvquant_version = version();
  calibration.path = path;
  save_calibration(calibration, path);
  return calibration;
}

Json to_json(const CandidateScore& score) {
  Json out = spec_fields(score.spec, CacheMode::kStrict);
  out.update({{"perplexity", score.perplexity},
              {"baseline_ppl", score.baseline},
              {"ppl_delta_rel", score.ppl_delta},
              {"ppl_delta_low", score.ppl_delta_low},
              {"ppl_delta_high", score.ppl_delta_high},
              {"kl_mean", score.kl_mean},
              {"top1_agreement", score.top1_agreement},
              {"true_bits", score.true_bits},
              {"cache_bytes", score.cache_bytes},
              {"tokens", score.tokens},
              {"windows", score.windows},
              {"dropped", score.is_dropped}});
  return out;
}

TunePresetOptions preset_options(const Options& options, const Model& model) {
  return {.model = preset_model(model.checkpoint()),
          .name = options.name.empty() ? fs::path(options.output).stem().string() : options.name,
          .target_ppl_delta = options.target_ppl_delta,
          .window = window_of(options, model),
          .program = version()};
}

std::string percent(double share) { return fmt::format("{:+.2f}%", 100 * share); }

void print_table(const std::vector<CandidateScore>& scores) {
  std::vector<std::vector<std::string>> rows = {
      {"spec", "true bits", "perplexity", "Δ", "95% from", "to", "KL", "top-1", "windows"}};
  for (const CandidateScore& s : scores) {
    rows.push_back(
        {s.spec.text, fmt::format("{:.2f}", s.true_bits), fmt::format("{:.4f}", s.perplexity),
         percent(s.ppl_delta), percent(s.ppl_delta_low), percent(s.ppl_delta_high),
         fmt::format("{:.4f}", s.kl_mean), fmt::format("{:.2f}%", 100 * s.top1_agreement),
         s.is_dropped ? fmt::format("{}, dropped", s.windows) : std::to_string(s.windows)});
  }
  fmt::print("{}", format_table(rows));
}

void print_result(const Options& options, const TuneResult& result, const Files& files) {
  auto candidates = result.candidates;
  std::stable_sort(
      candidates.begin(), candidates.end(),
      [](const CandidateScore& a, const CandidateScore& b) { return a.true_bits < b.true_bits; });
  fmt::print("On the selection text, fp16 at {:.4f}:\n", candidates[0].baseline);
  print_table(candidates);
  if (!result.measured.empty()) {
    fmt::print("\nOn the test text, fp16 at {:.4f}:\n", result.measured[0].baseline);
    print_table(result.measured);
  }
  if (!result.winner) return;
  const CandidateScore& winner = result.measured[*result.winner];
  fmt::print("\n{}: {}, {:.2f} bits ({:.2f}x), {} of a budget of {}\n", files.preset,
             winner.spec.text, winner.true_bits, 16 / winner.true_bits, percent(winner.ppl_delta),
             percent(options.target_ppl_delta));
  if (result.num_refused > 0) {
    fmt::print("{} smaller within the budget on the selection text, but not on the test text\n",
               result.num_refused);
  }
}

Json config_of(const Options& options, Model& model, const TuneTexts& texts) {
  Json config = common_config(options.common, model);
  config.update({{"target_ppl_delta", options.target_ppl_delta},
                 {"target", options.target},
                 {"window", window_of(options, model)},
                 {"selection_windows", options.windows},
                 {"test_windows", options.test_windows},
                 {"test_file", texts.test_file},
                 {"test_begin", texts.test_begin},
                 {"output", options.output}});
  return config;
}

int run(const Options& options) {
  check_arg(std::isfinite(options.target_ppl_delta) && options.target_ppl_delta >= 0,
            fmt::format("--target-ppl-delta is {}, not a number of at least 0: 0.05 allows 5%",
                        options.target_ppl_delta));
  const Files files = files_of(options);
  Model model = load_model(options.common);  // with --calib
  const auto specs = candidates_of(options, model.config());
  const bool is_calibrated = model.calibration() != nullptr;
  const TuneTexts texts =
      texts_of(options, model, is_calibrated ? &model.calibration()->info : nullptr);
  Calibration calibration = is_calibrated
                                ? *model.calibration()
                                : make_calibration(options, model, texts, files.whole_calibration);
  round_calibration(calibration);  // as the preset's file will have it
  model.set_calibration(std::move(calibration));
  check_evaluation(model, {.specs = specs, .mode = CacheMode::kStrict});

  const std::string precision = precision_of(options.common) == Precision::kBF16 ? "bf16" : "f32";
  TuneLog log(files.log);
  if (!options.common.quiet && log.num_read() > 0) {
    fmt::print(stderr, "kvquant: {} has {} results; those of this run are not run again\n",
               files.log, log.num_read());
  }
  const TuneResult result = tune(
      engine_runtime(model), {texts.selection, texts.test}, specs,
      {.target_ppl_delta = options.target_ppl_delta,
       .window = window_of(options, model),
       .ubatch = options.common.ubatch,
       .program = version(),
       .run = precision + " " + options.common.weights},
      log,
      {progress_on_stderr(options.common, "select"), progress_on_stderr(options.common, "test")});
  Json document = make_document("tune", model_info(model), config_of(options, model, texts));
  for (const CandidateScore& score : result.candidates) {
    document["results"].push_back(to_json(score));
  }
  document["test"] = Json::array();
  for (const CandidateScore& score : result.measured) document["test"].push_back(to_json(score));
  document["preset"] = nullptr;
  if (result.winner) {
    Preset preset = tuned_preset(result, texts, preset_options(options, model));
    save_tuned_preset(preset, model.calibration().get(), files.preset);
    document["preset"] = Json::parse(preset_json(preset));
  }
  write_json(options.common, document);
  if (!json_on_stdout(options.common)) print_result(options, result, files);
  if (!result.winner) {
    fmt::print(stderr, "kvquant: {}\n", describe_failure(result, options.target_ppl_delta));
  }
  if (result.winner) {
    const auto warning =
        divergence_warning(result.measured[*result.winner], options.target_ppl_delta);
    if (!warning.empty()) fmt::print(stderr, "kvquant: warning: {}\n", warning);
  }
  return result.winner ? kDone : kCheckFailed;
}

void add_candidate_options(CLI::App& command, Options& options) {
  command
      .add_option("--target", options.target,
                  "sides to compress: v (values), k (keys), kv (both alike)")
      ->check(CLI::IsMember({"v", "k", "kv"}))
      ->capture_default_str();
  command
      .add_option(
          "--rank-grid", options.rank_grid,
          "ranks of pca to try, or none (default: head_dim / 1, 1.1, 1.2, 1.33, 1.5, 1.6, 2)")
      ->delimiter(',');
  command.add_option("--bits-options", options.bits, "bits of its latents: 16, 8, 4")
      ->delimiter(',')
      ->capture_default_str();
  command
      .add_option("--codecs", options.codecs,
                  "plain codecs to try as well, e.g. had+nuq4,int8; of keys and values with "
                  "--target kv: nuq4-1%/had+nuq4")
      ->delimiter(',');
  command.add_option("--kv", options.common.kv, "whole cache spec to try as well (repeat)")
      ->allow_extra_args(false);
  command.add_option("--sink", options.sink, "first tokens kept exactly, by all but --kv")
      ->check(at_least(0));
  command.add_option("--recent", options.recent, "last tokens kept exactly, by all but --kv")
      ->check(at_least(0));
}

void add_text_options(CLI::App& command, Options& options) {
  command.add_option("--data", options.data,
                     "texts to calibrate and to select on (default: the sample text)");
  command.add_option("--test", options.test,
                     "text for the final measurement (default: the end of the last of --data)");
  command.add_option("--windows", options.windows, "windows to select on")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--test-windows", options.test_windows, "windows of the final measurement")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--calib", options.common.calibration,
                     "calibration file (default: made from --data, once)");
  command.add_option("--samples", options.samples, "samples of the calibration at most")
      ->check(at_least(1))
      ->capture_default_str();
  command
      .add_option("--seq-len", options.seq_len,
                  "tokens of a sample (default: 2048, or the model's context)")
      ->check(at_least(1));
}

}  // namespace

void add_tune(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "tune", "find the smallest cache within a budget of perplexity and write it as a preset");
  add_common_flags(*command, options->common, kModelFlags | kRunFlags);
  command
      ->add_option("--target-ppl-delta", options->target_ppl_delta,
                   "how much perplexity may rise, as a share of that with fp16")
      ->capture_default_str();
  add_candidate_options(*command, *options);
  add_text_options(*command, *options);
  command->add_option("--name", options->name, "of the preset (default: of its file)");
  command
      ->add_option("-o,--output", options->output,
                   "preset to write (.json); beside it its calibration (.safetensors) and, so that "
                   "a run that stopped can go on, .tune.jsonl and .tune.safetensors")
      ->required()
      ->each([](const std::string& path) { check_writable(path); });  // now, not after the work
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
