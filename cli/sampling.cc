#include "cli/sampling.h"

#include <fmt/format.h>

#include "cli/common.h"

namespace kvquant::cli {

void add_sampling_flags(CLI::App& command, SamplingOptions& options) {
  SamplerOptions& s = options.sampler;
  command.add_option("-n,--n-predict", options.max_tokens, "tokens to generate at most")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_option("--temp", s.temperature, "temperature; 0 is greedy")->capture_default_str();
  command.add_option("--top-k", s.top_k, "keep the k likeliest; 0: all")->capture_default_str();
  command.add_option("--top-p", s.top_p, "keep the likeliest with this total; 1: all")
      ->capture_default_str();
  command.add_option("--min-p", s.min_p, "keep those at least this likely relative to the first")
      ->capture_default_str();
  command.add_option("--repeat-penalty", s.repeat_penalty, "of recent tokens; 1: none")
      ->capture_default_str();
  command.add_option("--repeat-last-n", s.repeat_last, "tokens that the penalty looks back on")
      ->capture_default_str();
}

void print_timings(const Generation& generation, const Session& session, const CacheSpec& spec) {
  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const auto generated = static_cast<int64_t>(generation.tokens.size());
  const int64_t cache_bytes = session.cache_bytes();
  fmt::print(stderr,
             "\nprompt      {:6} tokens {:8.2f} s {:8.1f} tokens/s\n"
             "generation  {:6} tokens {:8.2f} s {:8.1f} tokens/s\n"
             "cache       {} for {} tokens ({} of them compressed), {}\n",
             generation.num_prompt_tokens, generation.prompt_s,
             rate(generation.num_prompt_tokens, generation.prompt_s), generated,
             generation.generation_s, rate(generated, generation.generation_s),
             format_bytes(cache_bytes), session.length(), session.num_compressed_tokens(),
             resolved(with_windows(spec, CacheMode::kAsServed)));
  if (generation.stop == StopReason::kContextFull) {
    fmt::print(stderr, "stopped: the context of {} tokens is full\n", session.context());
  }
}

}  // namespace kvquant::cli
