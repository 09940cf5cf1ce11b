// kvquant COMMAND: results to stdout, progress and messages to stderr, one line per error.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "cli/commands.h"
#include "cli/common.h"
#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

// llama.cpp's users type -ctk, -ctv, -ub and -pg; CLI11 knows one letter or two dashes.
std::vector<std::string> with_long_flags(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  for (auto& argument : arguments) {
    if (argument == "--") break;  // another program's from here on
    for (const char* flag : {"-ctk", "-ctv", "-ub", "-pg"}) {
      if (argument == flag) argument.insert(0, "-");
    }
  }
  return arguments;
}

int fail(ExitCode code, const std::string& message) {
  fmt::print(stderr, "kvquant: {}\n", message);
  return code;
}

bool has_command(const CLI::App& app, const std::string& name) {
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  return std::any_of(commands.begin(), commands.end(),
                     [&](const CLI::App* command) { return command->get_name() == name; });
}

// What was printed may be in a buffer still, and not fit on the disk.
void flush_output() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw std::system_error(errno, std::generic_category(), "cannot write to standard output");
}

// Thrown by fmt and flush_output, and where no thread can be started.
ExitCode code_of(const std::system_error& error) {
  const int code = error.code().value();
  return code == ENOSPC || code == EDQUOT || code == EAGAIN || code == ENOMEM ? kResources
                                                                              : kBadInput;
}

int run(int argc, char** argv) {
  CLI::App app{"kvquant: compressed KV caches for large language models"};
  app.name("kvquant");
  app.require_subcommand(1);
  app.set_version_flag("--version", version());
  int exit_code = kDone;
  add_demo(app, exit_code);
  add_info(app, exit_code);
  add_formats(app, exit_code);
  add_generate(app, exit_code);
  add_chat(app, exit_code);
  add_calibrate(app, exit_code);
  add_perplexity(app, exit_code);
  add_allocate(app, exit_code);
  add_tune(app, exit_code);
  add_presets(app, exit_code);
  add_eval(app, exit_code);
  add_bench(app, exit_code);
  add_sweep(app, exit_code);
  add_report(app, exit_code);
  add_export(app, exit_code);
  add_energy(app, exit_code);
  add_make_model(app, exit_code);
  auto arguments = with_long_flags(argc, argv);
  if (!arguments.empty() && !arguments[0].empty() && arguments[0][0] != '-' &&
      !has_command(app, arguments[0])) {
    return fail(kBadInput,
                "there is no command '" + arguments[0] + "' (kvquant --help lists what there is)");
  }
  try {
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(arguments);
  } catch (const CLI::Success& help) {
    app.exit(help);
    flush_output();
    return kDone;
  } catch (const CLI::ParseError& error) {
    return fail(kBadInput, std::string(error.what()) + " (kvquant --help lists what there is)");
  }
  flush_output();
  return exit_code;
}

}  // namespace
}  // namespace kvquant::cli

int main(int argc, char** argv) {
  using namespace kvquant::cli;
  try {
    install_interrupt_handler();
    return run(argc, argv);
  } catch (const Interrupted&) {
    return fail(kInterrupted, "interrupted");
  } catch (const kvquant::OutOfMemory& error) {
    return fail(kResources, error.what());
  } catch (const kvquant::DeviceError& error) {
    return fail(kResources, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kResources, "out of memory");
  } catch (const std::system_error& error) {
    return fail(code_of(error), error.what());
  } catch (const std::exception& error) {
    return fail(kBadInput, error.what());
  }
}
