#include "eval/demo.h"

#include <algorithm>

#include "base/check.h"

namespace kvquant {
namespace {

constexpr int64_t kRoomForQuestion = 128;  // tokens

}  // namespace

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
  const auto quality =
      evaluate_perplexity(model, tokens, options.specs, perplexity, stage("quality"));
  for (size_t i = 0; i < options.specs.size(); ++i) {
    const SessionOptions session{
        .spec = options.specs[i], .context = context, .ubatch = options.ubatch};
    out.rows.push_back({quality[i], evaluate_recall(model, session, prompt, out.facts,
                                                    stage("recall " + options.specs[i].text))});
  }
  return out;
}

}  // namespace kvquant
