// kvquant chat: a conversation on the terminal; the cache keeps what was said.
#include <fmt/format.h>

#include <cstdio>
#include <iostream>
#include <memory>

#include "base/check.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/sampling.h"
#include "model/session.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  SamplingOptions sampling;
  std::string system;
};

class Conversation {
 public:
  Conversation(Model& model, Session& session, const Options& options)
      : model_(model),
        session_(session),
        options_(options),
        template_(recognise_chat_template(model.checkpoint().tokenizer().chat_template)) {
    if (!options.system.empty()) messages_.push_back({"system", options.system});
  }

  // One turn: prints the answer as it comes. Returns false when the context is full.
  bool turn(const std::string& user) {
    messages_.push_back({"user", user});
    const std::string text = render_chat(template_, messages_);
    auto prompt = unfed_;
    const auto rest = model_.tokenizer().encode(
        text.substr(said_.size()), Tokenizer::Special::kParse,
        said_.empty() ? Tokenizer::Bos::kAsConfigured : Tokenizer::Bos::kNever);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    const int64_t before = session_.length();
    if (before + static_cast<int64_t>(prompt.size()) >= session_.context()) return false;

    GenerateOptions generation{.max_tokens = options_.sampling.max_tokens,
                               .sampler = options_.sampling.sampler,
                               .stop_tokens = model_.checkpoint().eos_token_ids()};
    generation.sampler.seed = options_.common.seed + messages_.size();
    StreamDecoder decoder(model_.tokenizer());
    const auto out = generate(session_, prompt, generation, [&](int32_t token) {
      fmt::print("{}", decoder.next(token));
      std::fflush(stdout);
      return !was_interrupted();
    });
    fmt::print("{}\n", decoder.finish());
    clear_interrupted();  // Ctrl-C stops the answer only
    if (!options_.common.quiet) print_timings(out, session_, spec_of());

    const std::string answer = model_.tokenizer().decode(out.tokens);
    messages_.push_back({"assistant", answer});
    said_ = text + answer;
    const int64_t fed = session_.length() - before - static_cast<int64_t>(prompt.size());
    unfed_.assign(out.tokens.begin() + fed, out.tokens.end());
    return out.stop != StopReason::kContextFull;
  }

 private:
  CacheSpec spec_of() const { return specs_of(options_.common, {"fp16"})[0]; }

  Model& model_;
  Session& session_;
  const Options& options_;
  RecognisedTemplate template_;
  std::vector<ChatMessage> messages_;
  std::string said_;            // the rendered conversation so far, answers included
  std::vector<int32_t> unfed_;  // last sampled tokens that the model has not read yet
};

int run(const Options& options) {
  const auto specs = specs_of(options.common, {"fp16"});
  check_arg(specs.size() == 1, "chat takes one --kv");
  check_arg(options.common.json.empty(), "chat has no --json: use generate --chat");
  check_sampler_options(options.sampling.sampler);
  Model model = load_model(options.common);
  tell_expanded_layers(options.common, specs, model);
  Session session(model, {.spec = specs[0],
                          .mode = CacheMode::kAsServed,
                          .context = options.common.context,
                          .ubatch = options.common.ubatch});
  Conversation conversation(model, session, options);
  if (!options.common.quiet) {
    fmt::print(stderr, "{}, cache {}. An empty line or Ctrl-D ends.\n", model.config().name,
               specs[0].text);
  }
  std::string line;
  while (true) {
    fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line) || line.empty()) break;
    if (!conversation.turn(line)) {
      fmt::print(stderr, "kvquant: the context of {} tokens is full\n", session.context());
      break;
    }
  }
  return was_interrupted() ? kInterrupted : kDone;
}

}  // namespace

void add_chat(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  options->sampling.max_tokens = 512;
  options->sampling.sampler.temperature = 0.7f;
  auto* command = app.add_subcommand("chat", "talk with a model");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags);
  add_sampling_flags(*command, options->sampling);
  command->add_option("--system", options->system, "system message");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
