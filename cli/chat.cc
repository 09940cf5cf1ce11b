// kvquant chat: a conversation on the terminal; the cache keeps what was said.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/check.h"
#include "cli/chat_prompt.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/line_reader.h"
#include "cli/policy.h"
#include "cli/sampling.h"
#include "kvquant/error.h"
#include "model/conversation.h"

namespace kvquant::cli {
namespace {

struct Options {
  CommonOptions common;
  PolicyOptions policy;
  SamplingOptions sampling;
  std::string system, chat_template;
};

constexpr const char* kHelp =
    "/reset      forgets all but the system message\n"
    "/save FILE  writes the cache to FILE and the messages to FILE.json\n"
    "/load FILE  goes on from there\n"
    "/help       says this\n"
    "Ctrl-C stops an answer. An empty line or Ctrl-D ends, as does Ctrl-C at the prompt.\n";

class Chat {
 public:
  Chat(Session& session, const Options& options, const CacheSpec& spec,
       Conversation::Options conversation)
      : session_(session),
        options_(options),
        spec_(spec),
        conversation_(session, std::move(conversation)) {}

  // A message, or a command: "/" and what follows.
  void take(const std::string& line) {
    if (!line.starts_with('/')) {
      say(line);
      return;
    }
    const size_t space = std::min(line.find(' '), line.size());
    const std::string command = line.substr(0, space);
    const size_t begin = std::min(line.find_first_not_of(' ', space), line.size());
    const std::string file = line.substr(begin);
    try {
      run_command(command, file);
    } catch (const FormatError& error) {
      fmt::print(stderr, "kvquant: {}\n", error.what());
    } catch (const IoError& error) {
      fmt::print(stderr, "kvquant: {}\n", error.what());
    } catch (const std::invalid_argument& error) {
      fmt::print(stderr, "kvquant: {}\n", error.what());
    }
  }

 private:
  void run_command(const std::string& command, const std::string& file) {
    const bool takes_file = command == "/save" || command == "/load";
    check_arg(takes_file || command == "/reset" || command == "/help",
              "there is no " + command + " (/help lists what there is)");
    check_arg(takes_file != file.empty(),
              command + (takes_file ? " needs a file" : " takes nothing behind it"));
    if (command == "/help") fmt::print(stderr, "{}", kHelp);
    if (command == "/reset") conversation_.reset();
    if (command == "/save") conversation_.save(file, version());
    if (command == "/load") conversation_.load(file);
    if (options_.common.quiet || command == "/help") return;
    fmt::print(stderr, "kvquant: {} messages, {} tokens in the cache\n",
               conversation_.messages().size(), session_.length());
  }

  void say(const std::string& line) {
    Conversation::Turn turn;
    try {
      turn = conversation_.turn(line, [](const std::string& text) {
        fmt::print("{}", text);
        std::fflush(stdout);
        return !was_interrupted();
      });
    } catch (const std::invalid_argument& error) {  // not UTF-8, or too long
      fmt::print(stderr, "kvquant: {}\n", error.what());
      return;
    }
    fmt::print("\n");
    std::fflush(stdout);
    clear_interrupted();  // Ctrl-C stops the answer only
    tell_shift(turn.shift);
    if (!options_.common.quiet) print_timings(turn.generation, session_, spec_);
  }

  void tell_shift(const Session::Shift& shift) const {
    if (shift.num_forgotten == 0) return;
    fmt::print(stderr,
               "kvquant: the context of {} tokens was full: {} tokens of the conversation's middle "
               "are forgotten, {} were read again{}\n",
               session_.context(), shift.num_forgotten, shift.num_read_again,
               shift.moved_tiles
                   ? ""
                   : " (nothing can move: keys are stored after RoPE, or no whole tile could go)");
  }

  Session& session_;
  const Options& options_;
  const CacheSpec& spec_;
  Conversation conversation_;
};

int run(const Options& options) {
  check_policy(options.policy, options.common);
  auto specs = specs_of(options.common, {"fp16"});
  check_arg(specs.size() == 1, "chat takes one --kv");
  check_arg(options.common.json.empty(), "chat has no --json: use generate --chat");
  check_sampler_options(options.sampling.sampler);
  Model model = load_model(options.common, RunsOn::kCpuOrGpu);
  apply_policy(options.policy, options.common, model, {.context = options.common.context}, specs);
  const ChatFormat format = chat_format_of(options.chat_template, model);
  tell_expanded_layers(options.common, specs, model);
  tell_unabsorbed(options.common, specs, model);
  Session session(model, {.spec = specs[0],
                          .mode = CacheMode::kAsServed,
                          .context = options.common.context,
                          .ubatch = options.common.ubatch});
  GenerateOptions generation{.max_tokens = options.sampling.max_tokens,
                             .sampler = options.sampling.sampler,
                             .stop_tokens = model.checkpoint().eos_token_ids()};
  generation.sampler.seed = options.common.seed;
  Chat chat(session, options, specs[0], {format, chat_tokens(model), options.system, generation});
  if (!options.common.quiet) {
    fmt::print(stderr, "{}, cache {}, template {}. /help says what else there is.\n",
               model.config().name, specs[0].text, format.name);
  }
  LineReader lines;
  while (true) {
    fmt::print(stderr, "> ");
    const auto line = lines.next();
    if (!line || line->empty()) break;
    chat.take(*line);
  }
  tell_absorbed(options.common, model);
  return was_interrupted() ? kInterrupted : kDone;
}

}  // namespace

void add_chat(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  options->sampling.max_tokens = 512;
  options->sampling.sampler.temperature = 0.7f;
  auto* command = app.add_subcommand("chat", "talk with a model");
  add_common_flags(*command, options->common, kModelFlags | kSpecFlags | kRunFlags | kAbsorbFlag);
  add_policy_flags(*command, options->policy);
  add_sampling_flags(*command, options->sampling);
  command->add_option("--system", options->system, "system message");
  add_chat_template_flag(*command, options->chat_template);
  command->callback([options, &exit_code] { exit_code = run(*options); });
}

}  // namespace kvquant::cli
