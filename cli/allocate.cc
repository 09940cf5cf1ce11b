// kvquant allocate: which layers need more bits than others, and the spec that spends a budget
// best.
#include "eval/allocate.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <optional>

#include "base/check.h"
#include "base/file.h"
#include "cli/allocate_output.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "eval/disjoint_texts.h"
#include "eval/sensitivity_file.h"
#include "formats/codec_table.h"
#include "formats/layered_spec.h"

namespace kvquant::cli {
namespace {

constexpr int64_t kNumRivals = 3;
constexpr int64_t kDefaultWindow = 2048;  // where the model's context allows it

struct Options {
  CommonOptions common;
  std::vector<double> bits;
  std::vector<std::string> codecs, key_codecs, value_codecs;
  std::string file, test_file, sensitivity, output;
  int64_t num_windows = 1, num_test_windows = 2;
  int sink = 4;
  std::optional<int> recent;
  bool as_served = false;
};

std::vector<std::string> default_values(int64_t head_dim) {
  if (!std::has_single_bit(static_cast<uint64_t>(head_dim))) {  // nothing can rotate these
    return {"nuq2-1%", "nuq3-1%", "nuq4-1%", "int8"};
  }
  return {"had+nuq2", "had+nuq2-1%", "had+nuq3", "had+nuq4", "int8"};
}

std::vector<Codec> parse_codecs(const std::vector<std::string>& names, const std::string& side) {
  std::vector<Codec> out;
  for (const std::string& name : names) {
    const CacheSpec spec = parse_spec(side + "=" + name);
    const Codec& codec = side == "k" ? spec.key : spec.value;
    check_arg(std::find(out.begin(), out.end(), codec) == out.end(),
              fmt::format("candidate {}={} is listed twice", side, name));
    check_spec_built(spec);
    out.push_back(codec);
  }
  return out;
}

SensitivityOptions sensitivity_options(const Options& options, const ModelConfig& config) {
  const auto names_of = [&](const std::vector<std::string>& own,
                            const std::vector<std::string>& usual) {
    if (!own.empty()) return own;
    return options.codecs.empty() ? usual : options.codecs;
  };
  SensitivityOptions out;
  out.keys =
      parse_codecs(names_of(options.key_codecs, {"nuq2-1%", "nuq3-1%", "nuq4-1%", "int8"}), "k");
  out.values = parse_codecs(names_of(options.value_codecs, default_values(config.head_dim)), "v");
  out.windows.sink = options.sink;
  out.windows.recent = options.recent;
  out.mode = options.as_served ? CacheMode::kAsServed : CacheMode::kStrict;
  out.ubatch = options.common.ubatch;
  return out;
}

// Before minutes are spent: sizes without windows, parameters and half-empty blocks.
void check_budgets(const Options& options, const SensitivityOptions& candidates,
                   const ModelConfig& config) {
  double key = 32, value = 32;
  for (const Codec& codec : candidates.keys) {
    key = std::min(key, marginal_key_bits(codec, config.head_dim));
  }
  for (const Codec& codec : candidates.values) {
    value = std::min(value, marginal_value_bits(codec, config.head_dim, config.num_kv_heads));
  }
  const double least = (key + value) / 2;
  for (const double bits : options.bits) {
    check_arg(std::isfinite(bits), fmt::format("--bits {}: not a finite number", bits));
    check_arg(bits >= least,
              fmt::format("--bits {:g} is less than the {:.2f} of the smallest candidates: raise "
                          "it, or name smaller ones with --codecs",
                          bits, least));
  }
}

TokenizedText tokens_of(const std::string& file, const Model& model) {
  const std::string text = read_utf8(file.empty() ? find_asset("sample.txt") : file);
  return {file.empty() ? "assets/sample.txt" : file,
          model.tokenizer().encode(text, Tokenizer::Special::kAsText, Tokenizer::Bos::kNever)};
}

int64_t window_of(const Options& options, const Model& model) {
  return options.common.context > 0 ? options.common.context
                                    : std::min(kDefaultWindow, model.config().max_context);
}

ChoiceTexts texts_of(const Options& options, const Model& model) {
  const TokenizedText selection = tokens_of(options.file, model);
  const bool has_test = !options.test_file.empty() && options.test_file != options.file;
  const TokenizedText test = has_test ? tokens_of(options.test_file, model) : TokenizedText{};
  return choose_texts(model, selection, has_test ? &test : nullptr,
                      {.window = window_of(options, model),
                       .num_selection_windows = options.num_windows,
                       .num_test_windows = options.num_test_windows});
}

SensitivityTable measure(const Options& options, Model& model, const ChoiceTexts& texts,
                         const SensitivityOptions& candidates) {
  const Progress progress = progress_on_stderr(options.common, "allocate");
  const std::string& path = options.sensitivity;
  if (path.empty()) {
    return measure_sensitivity(model, texts.selection, candidates, {}, {}, progress);
  }
  const std::string key = sensitivity_key(model, texts.selection, candidates);
  const auto known = load_sensitivity(path, key, model.config().num_layers);
  if (!options.common.quiet && !known.empty()) {
    fmt::print(stderr, "kvquant: {} has {} results; those are not measured again\n", path,
               known.size());
  }
  const auto keep = [&](const SensitivityTable& table) { save_sensitivity(table, key, path); };
  return measure_sensitivity(model, texts.selection, candidates, known, keep, progress);
}

// Of every budget, the mixture first. Null: a budget is too small for the table.
std::vector<std::vector<CheckedAllocation>> choose(const Options& options,
                                                   const SensitivityTable& table,
                                                   const CacheSpec& windows) {
  std::vector<std::vector<CheckedAllocation>> out;
  for (const double bits : options.bits) {
    auto& chosen = out.emplace_back();
    const auto add = [&](const Allocation& allocation, bool is_mixture) {
      chosen.push_back(
          {.budget_bits = bits,
           .is_mixture = is_mixture,
           .allocation = allocation,
           .spec = parse_spec(layered_spec(allocation.keys, allocation.values, windows)),
           .result = {}});
    };
    add(allocate_bits(table, bits), true);
    for (const Allocation& rival : uniform_rivals(table, bits, kNumRivals)) add(rival, false);
  }
  return out;
}

// All specs in one pass over the text.
void check(const Options& options, Model& model, const ChoiceTexts& texts, CacheMode mode,
           std::vector<std::vector<CheckedAllocation>>& chosen) {
  std::vector<CacheSpec> specs;
  const auto index_of = [&](const CacheSpec& spec) {
    return std::find_if(specs.begin(), specs.end(),
                        [&](const CacheSpec& other) { return other.text == spec.text; }) -
           specs.begin();
  };
  for (const auto& budget : chosen) {
    for (const auto& c : budget) {
      if (index_of(c.spec) == std::ssize(specs)) specs.push_back(c.spec);
    }
  }
  const auto results = evaluate_perplexity(
      model, texts.test, specs,
      {.window = window_of(options, model), .mode = mode, .ubatch = options.common.ubatch},
      progress_on_stderr(options.common, "check"));
  for (auto& budget : chosen) {
    for (auto& c : budget) c.result = results[static_cast<size_t>(index_of(c.spec))];
  }
}

Json config_of(const Options& options, Model& model) {
  const std::string file = options.file.empty() ? "assets/sample.txt" : options.file;
  Json config = common_config(options.common, model);
  config.update({{"bits", options.bits},
                 {"file", file},
                 {"test_file", options.test_file.empty() ? file : options.test_file},
                 {"window", window_of(options, model)},
                 {"windows", options.num_windows},
                 {"test_windows", options.num_test_windows}});
  return config;
}

void write_output(const Options& options, const std::vector<std::vector<CheckedAllocation>>& chosen,
                  const Json& document) {
  if (options.output.empty()) return;
  std::string text;
  for (const auto& budget : chosen) text += budget[0].spec.text + "\n";
  if (options.output.ends_with(".json")) text = document.dump(2) + "\n";
  write_file_atomic(options.output, text);
}

int run(const Options& options) {
  Model model = load_model(options.common);
  const SensitivityOptions candidates = sensitivity_options(options, model.config());
  check_budgets(options, candidates, model.config());
  const ChoiceTexts texts = texts_of(options, model);
  const SensitivityTable table =
      of_candidates(measure(options, model, texts, candidates), candidates);

  const bool to_stdout = json_on_stdout(options.common);
  if (!to_stdout) {
    fmt::print("KL of one side of one layer in a codec, all else fp16 ({} tokens, {}, {}):\n{}",
               table.tokens, options.as_served ? "as served" : "strict",
               describe_calibration(model), sensitivity_text(table, candidates));
  }
  const double least = reachable_bits(table).least;
  for (const double bits : options.bits) {
    if (bits >= least) continue;
    fmt::print(stderr,
               "kvquant: --bits {:g}: the smallest candidates take {:.3f} at {} tokens, windows "
               "and parameters included\n",
               bits, least, window_of(options, model));
    return kCheckFailed;
  }
  auto chosen = choose(options, table, candidates.windows);
  check(options, model, texts, candidates.mode, chosen);

  Json document = make_document("allocate", model_info(model), config_of(options, model));
  document["sensitivity"] = sensitivity_json(table);
  for (const auto& budget : chosen) {
    if (!to_stdout) {
      fmt::print("\n{:g} bits, checked on {} other tokens:\n{}", budget[0].budget_bits,
                 budget[0].result.tokens, comparison_text(budget));
    }
    for (const auto& c : budget) document["results"].push_back(to_json(c, candidates.mode));
  }
  write_output(options, chosen, document);
  write_json(options.common, document);
  return kDone;
}

void add_codec_options(CLI::App& command, Options& options) {
  const auto add = [&](const char* name, std::vector<std::string>& list, const char* help) {
    command.add_option(name, list, help)->delimiter(',');
  };
  add("--codecs", options.codecs, "candidates for both sides, e.g. nuq2-1%,nuq3-1%,nuq4-1%");
  add("--key-codecs", options.key_codecs,
      "candidates for keys (default: nuq2-1%,nuq3-1%,nuq4-1%,int8)");
  add("--value-codecs", options.value_codecs,
      "candidates for values (default: had+nuq2,had+nuq2-1%,had+nuq3,had+nuq4,int8)");
  command.add_option("--sink", options.sink, "first tokens kept fp16, as in specs")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_option("--recent", options.recent, "last tokens kept fp16 (default: not said)")
      ->check(at_least(0));
}

}  // namespace

void add_allocate(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "allocate", "codecs per layer and side under a budget of bits, from what each costs alone");
  add_common_flags(*command, options->common, kModelFlags | kRunFlags);
  command->add_option("--bits", options->bits, "true bits per value, e.g. 3.2, or several: 2.8,3.4")
      ->required()
      ->delimiter(',');
  command
      ->add_option("--calib", options->common.calibration,
                   "calibration file, as kvquant calibrate writes")
      ->check([](const std::string& path) {  // an unset variable of a script, most likely
        return path.empty() ? "the path of the calibration file is empty" : std::string();
      });
  add_codec_options(*command, *options);
  command->add_option("-f,--file", options->file,
                      "text to measure on, besides what the calibration has seen of it (default: "
                      "the sample text)");
  command->add_option("--test-file", options->test_file,
                      "text to check the result on (default: other parts of the same)");
  command->add_option("--windows", options->num_windows, "windows to measure on")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--test-windows", options->num_test_windows, "windows to check on")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_flag("--as-served", options->as_served,
                    "the chunk's own tokens and the tail are exact, as in generation");
  command
      ->add_option("--sensitivity", options->sensitivity,
                   "file that keeps what is measured: a run that stopped goes on from there, "
                   "another budget needs no measurement")
      ->each([](const std::string& path) { check_writable(path); });  // now, not after the work
  command
      ->add_option("-o,--output", options->output,
                   "file for the spec, or for the whole result when it ends in .json")
      ->each([](const std::string& path) { check_writable(path); });
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
