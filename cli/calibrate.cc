// kvquant calibrate: fits codebooks, scales and bases to a model on texts, into one file.
#include "model/calibrate.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <span>

#include "base/check.h"
#include "base/file.h"
#include "base/timer.h"
#include "cli/calibrate_in_memory.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "kvquant/codebook.h"
#include "kvquant/error.h"
#include "quant/pca.h"
#include "quant/per_layer_keys.h"

namespace kvquant::cli {
namespace {

constexpr int64_t kDefaultSeqLen = 2048;  // where the model's context allows it

struct Options {
  CommonOptions common;
  std::vector<std::string> data;
  int64_t samples = 16;
  int64_t seq_len = 0;  // 0: the default
  int64_t rank = 0;
  FitChoiceNames choices;
  std::string fisher;     // file; for the weights of that name
  std::string per_layer;  // folder; empty: none
  std::string per_layer_codec = "nuq4-1%";
  std::string output;
  bool spectra = false;
};

// Refuses now what would fail after the work.
void check_per_layer(const Options& options) {
  get_nuq_bitwidth(options.per_layer_codec);
  if (options.per_layer.empty()) return;
  const std::filesystem::path folder = options.per_layer;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw IoError(fmt::format("{}: can't make the folder: {}", options.per_layer, error.message()));
  }
  check_writable((folder / "codebooks.safetensors").string());
}

void write_per_layer(const Options& options, const Calibration& calibration) {
  if (options.per_layer.empty()) return;
  const PerLayerKeys keys = per_layer_keys(calibration, options.per_layer_codec);
  save_per_layer_codebooks(options.per_layer, keys.codebooks);
  save_per_layer_scaling_factors(options.per_layer, keys.scales);
}

std::vector<TokenizedText> read_texts(const Options& options, const Model& model) {
  std::vector<std::string> files = options.data;
  if (files.empty()) files = {find_asset("sample.txt")};
  std::vector<TokenizedText> texts;
  for (const auto& file : files) {
    texts.push_back({file, model.tokenizer().encode(read_utf8(file), Tokenizer::Special::kAsText,
                                                    Tokenizer::Bos::kNever)});
  }
  return texts;
}

// Ranks whose share of the energy is shown.
std::vector<int64_t> shown_ranks(const CalibrationInfo& info) {
  const int64_t dim = info.shape.head_dim;
  std::vector<int64_t> ranks = {dim * 15 / 16, dim * 7 / 8, dim * 3 / 4, dim / 2};
  if (info.rank < dim) ranks = {info.rank};
  return ranks;
}

std::vector<double> energy_shares(const Calibration& calibration, const std::vector<float>& spectra,
                                  int64_t head) {
  const auto dim = static_cast<size_t>(calibration.info.shape.head_dim);
  std::vector<double> shares;
  for (const int64_t rank : shown_ranks(calibration.info)) {
    const auto of_head = std::span(spectra).subspan(static_cast<size_t>(head) * dim, dim);
    shares.push_back(energy_share(of_head, rank));
  }
  return shares;
}

Json energy_of(const Calibration& calibration) {
  Json heads = Json::array();
  for (size_t layer = 0; layer < calibration.layers.size(); ++layer) {
    const ValueCalibration& value = calibration.layers[layer].value;
    for (int64_t head = 0; head < calibration.info.shape.num_kv_heads; ++head) {
      heads.push_back({{"layer", layer},
                       {"head", head},
                       {"pca", energy_shares(calibration, value.spectrum, head)},
                       {"pcaw", energy_shares(calibration, value.weighted_spectrum, head)}});
    }
  }
  return {{"ranks", shown_ranks(calibration.info)}, {"heads", heads}};
}

void print_energy(const Calibration& calibration) {
  std::vector<std::vector<std::string>> rows(1);
  rows[0] = {"layer", "head"};
  for (const int64_t rank : shown_ranks(calibration.info)) {
    rows[0].push_back(fmt::format("pca{}", rank));
  }
  for (size_t layer = 0; layer < calibration.layers.size(); ++layer) {
    for (int64_t head = 0; head < calibration.info.shape.num_kv_heads; ++head) {
      rows.push_back({std::to_string(layer), std::to_string(head)});
      for (const double share :
           energy_shares(calibration, calibration.layers[layer].value.spectrum, head)) {
        rows.back().push_back(fmt::format("{:.2f}%", 100 * share));
      }
    }
  }
  fmt::print("Energy of values that a rank keeps ({}):\n{}", calibration.info.recipe,
             format_table(rows));
}

Json result_of(const Calibration& calibration, int64_t file_bytes, double seconds) {
  const auto& info = calibration.info;
  Json texts = Json::array();
  for (const auto& text : info.texts) {
    texts.push_back(
        {{"file", text.file}, {"begin", text.begin}, {"end", text.end}, {"hash", text.hash}});
  }
  return {{"num_samples", info.num_samples},
          {"seq_len", info.seq_len},
          {"tokens", info.num_samples * info.seq_len},
          {"rank", info.rank},
          {"recipe", info.recipe},
          {"file_bytes", file_bytes},
          {"calibration_s", seconds},
          {"value_energy", energy_of(calibration)},
          {"texts", texts}};
}

int run(const Options& options) {
  check_arg(options.common.context == 0,
            "calibrate takes --seq-len, the length of a sample, instead of --ctx");
  check_per_layer(options);
  Model model = load_model(options.common);
  const auto texts = read_texts(options, model);
  const CalibrateOptions calibration_options{
      .num_samples = options.samples,
      .seq_len = options.seq_len > 0 ? options.seq_len
                                     : std::min(kDefaultSeqLen, model.config().max_context),
      .rank = options.rank,
      .seed = options.common.seed,
      .ubatch = options.common.ubatch,
      .choices = parse_fit_choices(options.choices),
      .fisher = options.fisher};
  const Timer timer;
  Calibration calibration = calibrate_in_memory(model, texts, calibration_options,
                                                progress_on_stderr(options.common, "calibrate"));
  calibration.info.kvquant_version = version();
  const double seconds = timer.seconds();
  save_calibration(calibration, options.output);
  write_per_layer(options, calibration);

  const auto& info = calibration.info;
  if (info.num_samples < options.samples) {
    fmt::print(stderr,
               "kvquant: warning: the texts hold {} whole samples of {} tokens, not {}: give more "
               "text with --data\n",
               info.num_samples, info.seq_len, options.samples);
  }
  std::error_code error;  // a pipe has no size
  const auto size = std::filesystem::file_size(options.output, error);
  const int64_t file_bytes = error ? 0 : static_cast<int64_t>(size);
  Json config = common_config(options.common, model);
  config.update({{"samples", options.samples}, {"output", options.output}});
  if (!options.per_layer.empty()) {
    config.update({{"per_layer", options.per_layer}, {"per_layer_codec", options.per_layer_codec}});
  }
  Json document = make_document("calibrate", model_info(model), config);
  document["results"].push_back(result_of(calibration, file_bytes, seconds));
  write_json(options.common, document);
  if (!json_on_stdout(options.common)) {
    fmt::print("{} layers calibrated on {} tokens ({} samples of {}) in {:.1f} s\n{}: {}\n",
               info.shape.num_layers, info.num_samples * info.seq_len, info.num_samples,
               info.seq_len, seconds, options.output, format_bytes(file_bytes));
    if (options.spectra) print_energy(calibration);
    if (!options.per_layer.empty()) {
      fmt::print("{}: codebooks and scales of {} keys, layer by layer\n", options.per_layer,
                 options.per_layer_codec);
    }
  }
  return kDone;
}

void add_ablation_options(CLI::App& command, Options& options) {
  const auto add = [&](const char* name, std::string& value, const char* help,
                       const std::vector<std::string>& names) {
    return command.add_option(name, value, help)->check(CLI::IsMember(names))->group("Ablation");
  };
  add("--recipe", options.choices.recipe,
      "default of the choices below: error-saved, or percentile as KVQuant does (arXiv 2401.18079: "
      "percentile outliers, no feedback)",
      {"error-saved", "percentile"})
      ->capture_default_str();
  add("--outliers", options.choices.outliers,
      "key outliers: where they save most error, or at percentiles, with the range they leave",
      {"error-saved", "percentile"});
  add("--feedback", options.choices.feedback,
      "make up for rounding errors of key channels in later ones", {"on", "off"});
  add("--codebook", options.choices.codebook, "how levels are found (default: exact)",
      {"exact", "lloyd", "normal-float", "uniform", "heuristic"});
  add("--codebook-weights", options.choices.weights,
      "what an error costs in their fit: nothing more, its scale squared (default), or that times "
      "what queries make of it, or with squared gradients of a file",
      {"none", "scale", "query", "fisher"});
  add("--codebook-per", options.choices.codebooks,
      "whose keys or values share one: all of a layer, or those of each KV head", {"layer", "head"})
      ->capture_default_str();
  add("--bases", options.choices.bases,
      "what bases of values are fitted to: what attention makes of them, the values themselves, or "
      "the former of all heads of a layer together; with values, bases of keys to the keys, not to "
      "scores",
      {"outputs", "values", "pooled"})
      ->capture_default_str();
  command
      .add_option("--fisher", options.fisher,
                  "squared gradients (.safetensors: fisher.key.<layer>, fisher.value.<layer>) for "
                  "--codebook-weights fisher")
      ->group("Ablation");
}

void add_per_layer_options(CLI::App& command, Options& options) {
  auto* folder =
      command.add_option("--per-layer", options.per_layer,
                         "folder to write key codebooks and scales to as well, layer by layer");
  command.add_option("--per-layer-codec", options.per_layer_codec, "of those keys: nuq3, nuq3-1%")
      ->needs(folder)
      ->capture_default_str();
}

}  // namespace

void add_calibrate(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "calibrate", "fit codebooks, scales and bases to a model on texts, into one file");
  add_common_flags(*command, options->common, kModelFlags | kRunFlags);
  command->add_option("--data", options->data, "texts (default: the sample text)");
  command->add_option("--samples", options->samples, "samples at most")
      ->check(at_least(1))
      ->capture_default_str();
  command
      ->add_option("--seq-len", options->seq_len,
                   "tokens of a sample (default: 2048, or the model's context)")
      ->check(at_least(1));
  command
      ->add_option("--rank", options->rank,
                   "components of the low-rank bases to store (default: all)")
      ->check(at_least(1));
  command->add_option("-o,--output", options->output, "calibration file to write (.safetensors)")
      ->required()
      ->each([](const std::string& path) { check_writable(path); });  // now, not after the work
  command->add_flag("--spectra", options->spectra,
                    "print how much of its values' energy a rank keeps of every KV head");
  add_per_layer_options(*command, *options);
  add_ablation_options(*command, *options);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
