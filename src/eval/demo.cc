#include "eval/demo.h"

#include <algorithm>

#include "base/check.h"
#include "base/timer.h"
#include "formats/codec_table.h"
#include "model/calibrate.h"
#include "model/calibration_source.h"

namespace kvquant {
namespace {

constexpr int64_t kRoomForQuestion = 128;  // tokens
constexpr int64_t kMaxSamples = 8;
constexpr int64_t kMaxSampleTokens = 1024;

constexpr int64_t kLeastTokens = 512;  // fewer would say too little about the model

std::vector<CacheSpec> specs_of_rows(const DemoOptions& options, const Model& model) {
  std::vector<CacheSpec> out = options.specs;
  if (!options.low_rank || model.calibration() == nullptr) return out;
  const int64_t rank = latent_rank(options.low_rank->value, model.config().head_dim);
  if (rank <= model.calibration()->info.rank) out.push_back(*options.low_rank);
  return out;
}

}  // namespace

Calibration calibrate_on_rest(Model& model, std::span<const int32_t> text, int64_t begin,
                              const DemoOptions& options, const Progress& progress) {
  const TokenizerData& data = model.tokenizer().data();
  const int64_t bos = data.add_bos && data.bos >= 0 ? 1 : 0;
  const int64_t longest = std::min(kMaxSampleTokens, model.config().max_context) - bos;
  const int64_t rest = static_cast<int64_t>(text.size()) - begin;
  check_arg(begin >= 0 && rest > 0, "demo: no text is left to calibrate on");
  const int64_t num_samples = std::min(kMaxSamples, (rest + longest - 1) / longest);
  const TokenizedText source{"the end of the text", {text.begin() + begin, text.end()}};
  Calibration out = calibrate(model, {&source, 1},
                              {.num_samples = num_samples,
                               .seq_len = std::min(longest, rest / num_samples) + bos,
                               .seed = options.seed,
                               .ubatch = options.ubatch},
                              progress);
  for (CalibrationText& sample : out.info.texts) {  // positions of the whole text
    sample.begin += begin;
    sample.end += begin;
  }
  return out;
}

DemoResult run_demo(Model& model, const std::string& text, const std::vector<Fact>& facts,
                    const DemoOptions& options, const StageProgress& stage) {
  const auto tokens =
      model.tokenizer().encode(text, Tokenizer::Special::kAsText, Tokenizer::Bos::kNever);
  const int64_t longest = model.config().max_context;
  const int64_t context = options.context == 0 ? longest : options.context;
  check_arg(kRoomForQuestion < context && context <= longest,
            "demo: a context of " + std::to_string(context) + " tokens is not in [" +
                std::to_string(kRoomForQuestion + 1) + ", " + std::to_string(longest) +
                "]: the model's, and room for questions");
  const int64_t most = context - kRoomForQuestion;
  DemoResult out;
  out.prompt_tokens = std::min(static_cast<int64_t>(tokens.size()), most);
  std::string prompt = text;
  if (out.prompt_tokens < static_cast<int64_t>(tokens.size())) {
    prompt =
        model.tokenizer().decode(std::span(tokens).first(static_cast<size_t>(out.prompt_tokens)));
    const size_t stop = prompt.find_last_of('.');
    check_arg(stop != std::string::npos, "demo: not one sentence of the text fits the context");
    prompt.resize(stop + 1);  // a whole sentence, and whole characters
  }
  for (const Fact& fact : facts) {
    if (prompt.find(fact.answer) != std::string::npos) out.facts.push_back(fact);
  }

  const PerplexityOptions perplexity{.window = std::min(options.window, context),
                                     .max_windows = options.max_windows,
                                     .ubatch = options.ubatch};
  const int64_t evaluated = num_evaluated_tokens(model, tokens, perplexity);
  if (model.calibration() == nullptr &&
      static_cast<int64_t>(tokens.size()) - evaluated >= kLeastTokens) {
    const Timer timer;
    model.set_calibration(calibrate_on_rest(model, tokens, evaluated, options, stage("calibrate")));
    out.calibration_s = timer.seconds();
  }
  if (model.calibration() != nullptr) {
    out.calibration_overlap = num_samples_within(model.calibration()->info, tokens, evaluated) > 0;
  }
  const std::vector<CacheSpec> specs = specs_of_rows(options, model);
  const auto quality = evaluate_perplexity(model, tokens, specs, perplexity, stage("quality"));
  for (size_t i = 0; i < specs.size(); ++i) {
    const SessionOptions session{.spec = specs[i], .context = context, .ubatch = options.ubatch};
    out.rows.push_back({quality[i], evaluate_recall(model, session, prompt, out.facts,
                                                    stage("recall " + specs[i].text))});
  }
  return out;
}

}  // namespace kvquant
