// kvquant generate: continues a prompt, streaming, with timings at the end.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/check.h"
#include "base/file.h"
#include "cli/chat_prompt.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/policy.h"
#include "cli/sampling.h"
#include "model/session.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  PolicyOptions policy;
  SamplingOptions sampling;
  std::string prompt, file, system, chat_template;
  std::string save_cache, load_cache;
  bool chat = false;
  bool ignore_eos = false;
};

std::string prompt_text(const Options& options, Model& model) {
  check_arg(options.prompt.empty() || options.file.empty(), "-p and -f exclude each other");
  const std::string text = options.file.empty() ? options.prompt : read_utf8(options.file);
  if (text.empty() && !options.load_cache.empty()) return text;  // go on where it stopped
  check_arg(!text.empty(), "the prompt is empty: give -p TEXT or -f FILE");
  if (!options.chat) {
    check_arg(options.system.empty(), "--system needs --chat");
    check_arg(options.chat_template.empty(), "--chat-template needs --chat");
    return text;
  }
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", text});
  return render_chat(chat_format_of(options.chat_template, model), messages, chat_tokens(model));
}

// What has to be computed: the prompt, or what of it isn't in the file of --load-cache. A prompt
// that doesn't begin with the file's tokens comes behind them.
std::vector<int32_t> tokens_to_feed(const Options& options, Session& session) {
  Model& model = session.model();
  const std::string text = prompt_text(options, model);
  // A chat template says itself where bos goes.
  const auto bos = options.chat ? Tokenizer::Bos::kNever : Tokenizer::Bos::kAsConfigured;
  auto prompt = model.tokenizer().encode(text, Tokenizer::Special::kParse, bos);
  if (options.load_cache.empty()) return prompt;
  session.load(options.load_cache);
  const auto loaded = session.tokens();
  const bool begins_alike =
      prompt.size() >= loaded.size() && std::equal(loaded.begin(), loaded.end(), prompt.begin());
  if (begins_alike) {
    prompt.erase(prompt.begin(), prompt.begin() + static_cast<int64_t>(loaded.size()));
  } else {
    prompt = model.tokenizer().encode(text, Tokenizer::Special::kParse, Tokenizer::Bos::kNever);
  }
  if (!options.common.quiet) {
    fmt::print(stderr, "kvquant: {} tokens from {}, {} of the prompt are new\n", loaded.size(),
               options.load_cache, prompt.size());
  }
  if (!prompt.empty() || loaded.empty()) return prompt;
  const int32_t last = loaded.back();  // once more: what follows it isn't in the file
  check_arg(session.can_truncate(session.length() - 1),
            options.load_cache +
                ": its last token is compressed (recent=0), so a prompt must "
                "follow: give -p TEXT");
  session.truncate(session.length() - 1);
  return {last};
}

// With the last generated token, which nothing has read yet; without it when the context is full.
void save(const Options& options, Session& session, const std::vector<int32_t>& generated,
          int64_t num_tokens) {
  if (options.save_cache.empty()) return;
  if (session.length() < num_tokens && session.length() < session.context()) {
    session.feed({&generated.back(), 1});
  }
  session.save(options.save_cache, version());
  if (options.common.quiet) return;
  fmt::print(stderr, "kvquant: {} tokens saved in {}\n", session.length(), options.save_cache);
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
  check_policy(options.policy, options.common);
  auto specs = specs_of(options.common, {"fp16"});
  check_arg(specs.size() == 1, "generate takes one --kv");
  check_sampler_options(options.sampling.sampler);
  check_arg(
      options.common.device == "cpu" || (options.save_cache.empty() && options.load_cache.empty()),
      "--device " + options.common.device +
          ": caches on GPUs have no files: leave out --save-cache and --load-cache");
  Model model = load_model(options.common, RunsOn::kCpuOrGpu);
  apply_policy(options.policy, options.common, model, {.context = options.common.context}, specs);
  tell_expanded_layers(options.common, specs, model);
  tell_unabsorbed(options.common, specs, model);
  Session session(model, {.spec = specs[0],
                          .mode = CacheMode::kAsServed,
                          .context = options.common.context,
                          .ubatch = options.common.ubatch});
  const auto prompt = tokens_to_feed(options, session);
  const int64_t num_before = session.length();
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
                 {"n_loaded", num_before},
                 {"n_prompt", out.num_prompt_tokens},
                 {"prompt_s", out.prompt_s},
                 {"generation_s", out.generation_s},
                 {"cache_bytes", session.cache_bytes()},
                 {"compressed_tokens", session.num_compressed_tokens()},
                 {"peak_rss_bytes", peak_rss_bytes()}});
  document["results"].push_back(result);
  tell_absorbed(options.common, model);
  save(options, session, out.tokens,
       num_before + out.num_prompt_tokens + static_cast<int64_t>(out.tokens.size()));
  write_json(options.common, document);
  return out.stop == StopReason::kCaller ? kInterrupted : kDone;
}

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("generate", "continue a prompt");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags | kAbsorbFlag);
  add_policy_flags(*command, options->policy);
  add_sampling_flags(*command, options->sampling);
  command->add_option("-p,--prompt", options->prompt, "prompt text");
  command->add_option("-f,--file", options->file, "file with the prompt");
  command->add_flag("--chat", options->chat, "wrap the prompt in the model's chat template");
  command->add_option("--system", options->system, "system message (with --chat)");
  add_chat_template_flag(*command, options->chat_template);
  command->add_flag("--ignore-eos", options->ignore_eos, "go on after a stop token");
  command
      ->add_option("--save-cache", options->save_cache,
                   "write the compressed cache of the prompt and of what was generated to this "
                   "file (-n 0: of the prompt)")
      ->each([](const std::string& path) { check_writable(path); });  // now, not after the work
  command->add_option("--load-cache", options->load_cache,
                      "start from a file of --save-cache: of a prompt that begins with its text "
                      "only the rest is computed, another one continues it");
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
