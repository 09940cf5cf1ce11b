// Session: one conversation with a model over a compressed cache: feed tokens, read logits,
// generate.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "cache/kv_cache.h"
#include "model/model.h"
#include "model/runner.h"
#include "model/sampler.h"

namespace kvquant {

inline constexpr int64_t kDefaultUbatch = 512;  // tokens that go through the layers at once

struct SessionOptions {
  CacheSpec spec;
  CacheMode mode = CacheMode::kAsServed;
  int64_t context = 0;  // most tokens of the session; 0: the model's
  int64_t ubatch = kDefaultUbatch;
};

class Session {
 public:
  // `model` must outlive the session. Throws std::invalid_argument when the options don't fit it.
  Session(Model& model, const SessionOptions& options);

  // Runs tokens (at least one) through the model in chunks of ubatch and returns the logits after
  // the last one, [vocab_size], valid until the next call. Throws std::invalid_argument when they
  // don't fit into the context or are unknown; nothing is fed then. After any other exception but
  // one of `progress`, the session refuses to go on: its cache stopped between two layers.
  std::span<const float> feed(std::span<const int32_t> tokens, const Progress& progress = {});
  // The same without logits; then what the sampler draws behind the last token.
  void advance(std::span<const int32_t> tokens, const Progress& progress = {});
  int32_t sample(Sampler& sampler);

  // Feeds tokens and returns the log-likelihood, in nats, of each but the first behind all that is
  // in front of it: [tokens - 1]. Throws as feed does.
  std::vector<double> score(std::span<const int32_t> tokens, const Progress& progress = {});

  // Forgets the last tokens until `length` are left. See KvCache::truncate.
  void truncate(int64_t length);
  bool can_truncate(int64_t length) const { return runner_->can_truncate(sequence_, length); }

  // Forgets everything, also an error.
  void restart();

  // Forgets about `num_tokens` tokens behind the first `keep`; those after them move down. Where
  // the cache compresses both sides of all layers and a whole tile can go, tiles move as they are
  // encoded (`keep` and what is forgotten are rounded up to tiles) and only sinks and the exact
  // tail are read again; else all that is kept is. Throws what feed does. Requires 0 <= keep,
  // 0 < num_tokens, keep + num_tokens < length().
  struct Shift {
    int64_t num_forgotten = 0;
    int64_t num_read_again = 0;
    bool moved_tiles = false;
  };
  Shift shift(int64_t keep, int64_t num_tokens);

  // Writes the cache and its tokens to a file (cache/cache_file.h). `kvquant_version` says who
  // wrote it. Throws what save_cache does, and std::invalid_argument of a model on a GPU, as load
  // does.
  void save(const std::string& path, const std::string& kvquant_version);
  // Takes the place of what is in the session: the file's tokens, as if they had been fed. The
  // file must be of this model, spec, mode and calibration. Throws what load_cache does, and
  // FormatError when the tokens don't fit into the context, or aren't as many as expected; then
  // nothing has changed.
  void load(const std::string& path, std::optional<int64_t> num_expected = {});

  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t context() const { return context_; }
  std::span<const int32_t> tokens() const { return tokens_; }
  Model& model() { return model_; }
  const KvCache& cache() const;  // of a model on the CPU; throws std::invalid_argument otherwise
  int64_t cache_bytes() const { return runner_->memory_bytes(); }
  int64_t num_compressed_tokens() const { return runner_->num_compressed_tokens(sequence_); }

 private:
  // Runs tokens chunk by chunk; use(index of the chunk's first token, its hidden states).
  void run(std::span<const int32_t> tokens, const Progress& progress,
           const std::function<void(int64_t begin, int64_t size)>& use);
  bool can_move_tiles() const;
  KvCache& cpu_cache() const;

  Model& model_;
  int64_t context_;
  int64_t ubatch_;
  std::unique_ptr<Runner> runner_;
  Runner::SequenceId sequence_;
  std::vector<int32_t> tokens_;
  Buffer<float> logits_;   // [vocab_size]
  int64_t last_row_ = -1;  // of the runner's last forward, if it was this session's
  bool is_broken_ = false;
};

struct GenerateOptions {
  int64_t max_tokens = 128;
  SamplerOptions sampler{};
  std::vector<int32_t> stop_tokens{};
};

enum class StopReason { kStopToken, kMaxTokens, kContextFull, kCaller };

struct Generation {
  std::vector<int32_t> tokens;  // without the stop token
  StopReason stop = StopReason::kMaxTokens;
  int64_t num_prompt_tokens = 0;
  double prompt_s = 0;
  double generation_s = 0;  // from the first new token's logits on
};

// Feeds the prompt and samples until a stop token, max_tokens, the end of the context, or
// `on_token` returns false. on_token may be empty.
Generation generate(Session& session, std::span<const int32_t> prompt,
                    const GenerateOptions& options,
                    const std::function<bool(int32_t)>& on_token = {},
                    const Progress& prompt_progress = {});

}  // namespace kvquant
