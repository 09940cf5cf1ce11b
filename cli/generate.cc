// kvquant generate: continues a prompt, streaming, with timings at the end.
#include <fmt/format.h>

#include <cstdio>
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
  std::string prompt, file, system;
  bool chat = false;
  bool ignore_eos = false;
};

std::string prompt_text(const Options& options, const Model& model) {
  check_arg(options.prompt.empty() || options.file.empty(), "-p and -f exclude each other");
  const std::string text = options.file.empty() ? options.prompt : read_utf8(options.file);
  check_arg(!text.empty(), "the prompt is empty: give -p TEXT or -f FILE");
  if (!options.chat) {
    check_arg(options.system.empty(), "--system needs --chat");
    return text;
  }
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", text});
  return render_chat(recognise_chat_template(model.checkpoint().tokenizer().chat_template),
                     messages);
}

const char* stop_name(StopReason stop) {
  switch (stop) {
    case StopReason::kStopToken: return "stop_token";
    case StopReason::kMaxTokens: return "max_tokens";
    case StopReason::kContextFull: return "context_full";
    case StopReason::kCaller: return "interrupted";
  }
  return "unknown";
}

int run(const Options& options) {
  const auto specs = specs_of(options.common, {"fp16"});
  check_arg(specs.size() == 1, "generate takes one --kv");
  check_sampler_options(options.sampling.sampler);
  Model model = load_model(options.common);
  tell_expanded_layers(options.common, specs, model);
  const auto prompt = model.tokenizer().encode(prompt_text(options, model));
  Session session(model, {.spec = specs[0],
                          .mode = CacheMode::kAsServed,
                          .context = options.common.context,
                          .ubatch = options.common.ubatch});
  GenerateOptions generation{.max_tokens = options.sampling.max_tokens,
                             .sampler = options.sampling.sampler,
                             .stop_tokens = {}};
  generation.sampler.seed = options.common.seed;
  if (!options.ignore_eos) generation.stop_tokens = model.checkpoint().eos_token_ids();

  const bool stream = !json_on_stdout(options.common);
  StreamDecoder decoder(model.tokenizer());
  const auto print = [&](const std::string& text) {
    if (!stream) return;
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  const auto out = generate(
      session, prompt, generation,
      [&](int32_t token) {
        print(decoder.next(token));
        return !was_interrupted();
      },
      progress_on_stderr(options.common, "prompt"));
  print(decoder.finish() + "\n");

  if (!options.common.quiet) print_timings(out, session, specs[0]);
  Json config = common_config(options.common, model);
  config["max_tokens"] = options.sampling.max_tokens;
  Json document = make_document("generate", model_info(model), config);
  Json result = spec_fields(specs[0], CacheMode::kAsServed);
  result.update({{"text", model.tokenizer().decode(out.tokens)},
                 {"tokens", out.tokens},
                 {"stop", stop_name(out.stop)},
                 {"n_prompt", out.num_prompt_tokens},
                 {"prompt_s", out.prompt_s},
                 {"generation_s", out.generation_s},
                 {"cache_bytes", session.cache().memory_bytes()},
                 {"compressed_tokens", session.num_compressed_tokens()},
                 {"peak_rss_bytes", peak_rss_bytes()}});
  document["results"].push_back(result);
  write_json(options.common, document);
  return out.stop == StopReason::kCaller ? kInterrupted : kDone;
}

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("generate", "continue a prompt");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags);
  add_sampling_flags(*command, options->sampling);
  command->add_option("-p,--prompt", options->prompt, "prompt text");
  command->add_option("-f,--file", options->file, "file with the prompt");
  command->add_flag("--chat", options->chat, "wrap the prompt in the model's chat template");
  command->add_option("--system", options->system, "system message (with --chat)");
  command->add_flag("--ignore-eos", options->ignore_eos, "go on after a stop token");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
