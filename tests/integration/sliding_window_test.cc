// A model with a sliding window reads what the same model without one reads when everything older
// is masked, whatever its cache holds.
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "base/test_path.h"
#include "golden.h"
#include "model/golden_test_models.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kWindow = 100, kNumTokens = 330;

// tiny_mistral with another window, or as a Llama, which has none.
class TinyMistral {
 public:
  explicit TinyMistral(int64_t window)
      : folder_(test::test_path(std::to_string(window))), model_(load(folder_, window)) {}
  ~TinyMistral() { fs::remove_all(folder_); }

  Model& model() { return model_; }

 private:
  static Model load(const std::string& folder, int64_t window) {
    fs::remove_all(folder);
    fs::copy(test::golden_path("tiny_mistral"), folder);
    auto config = nlohmann::json::parse(read_text(folder + "/config.json"));
    config["sliding_window"] = window;
    if (window == 0) {
      config["architectures"] = {"LlamaForCausalLM"};
      config.erase("sliding_window");
    }
    write_file_atomic(folder + "/config.json", config.dump());
    return Model::load(folder, {.num_threads = 2, .precision = Precision::kF32});
  }

  std::string folder_;
  Model model_;
};

struct Outcome {
  std::vector<float> hidden;  // of all tokens
  int64_t compressed_tokens = 0;
};

// Chunks of 60 tokens, then one token at a time.
Outcome run(Model& model, const char* spec, CacheMode mode) {
  Transformer& transformer = model.transformer();
  KvCache cache(transformer.kv_shape(), parse_spec(spec), mode, transformer.rope_table(),
                model.pool());
  const auto id = cache.add_sequence();
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < kNumTokens; ++t) tokens.push_back(static_cast<int32_t>(1 + t * t % 251));
  Outcome out;
  for (int64_t begin = 0; begin < kNumTokens;) {
    const int64_t size = begin + 60 <= 300 ? 60 : 1;
    const ForwardChunk chunk{
        id, std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(size))};
    const auto hidden = transformer.forward({&chunk, 1}, cache);
    out.hidden.insert(out.hidden.end(), hidden.data, hidden.data + size * hidden.shape[1]);
    begin += size;
  }
  out.compressed_tokens = cache.num_compressed_tokens(id);
  return out;
}

// Attention of these runs, as if a window had been said.
LayerAttention masked(int64_t window, Backend backend, ThreadPool& pool) {
  return [=, &pool](int64_t, KvCache::SequenceId, const AttendShape& shape,
                    std::span<const AttendJob> jobs) {
    std::vector<std::vector<AttendRun>> runs;
    std::vector<AttendJob> changed(jobs.begin(), jobs.end());
    for (AttendJob& job : changed) {
      runs.emplace_back(job.runs.begin(), job.runs.end());
      for (AttendRun& run : runs.back()) run.max_lag = std::min(run.max_lag, window);
      job.runs = runs.back();
    }
    attend(shape, changed, Precision::kF32, pool, backend);
  };
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double out = 0;
  for (size_t i = 0; i < a.size(); ++i) out = std::max(out, std::fabs(double{a[i]} - b[i]));
  return out;
}

class SlidingWindow : public testing::TestWithParam<std::pair<const char*, CacheMode>> {};

TEST_P(SlidingWindow, ReadsWhatIsLeftWhenOlderTokensAreMasked) {
  const auto [spec, mode] = GetParam();
  TinyMistral windowed(kWindow), whole(0);
  ASSERT_EQ(windowed.model().transformer().kv_shape().sliding_window, kWindow);
  ASSERT_EQ(whole.model().transformer().kv_shape().sliding_window, 0);
  const Outcome actual = run(windowed.model(), spec, mode);
  const Outcome seeing_all = run(whole.model(), spec, mode);
  whole.model().transformer().set_attention(masked(kWindow, best_backend(), whole.model().pool()));
  const Outcome expected = run(whole.model(), spec, mode);
  EXPECT_EQ(largest_difference(actual.hidden, expected.hidden), 0);
  EXPECT_GT(largest_difference(actual.hidden, seeing_all.hidden), 0.1);
  // The reference reads the runs of the windowed cache as they are.
  windowed.model().transformer().set_attention(
      masked(std::numeric_limits<int64_t>::max(), Backend::kReference, windowed.model().pool()));
  const Outcome reference = run(windowed.model(), spec, mode);
  EXPECT_LT(largest_difference(actual.hidden, reference.hidden), 2e-3);
  if (parse_spec(spec).text != "fp16") {
    EXPECT_GT(actual.compressed_tokens, 0);
    EXPECT_LE(actual.compressed_tokens, kWindow);
    EXPECT_GT(seeing_all.compressed_tokens, kWindow);
  }
}

// As served, up to recent + 63 tokens are exact, which the window is to exceed.
constexpr std::pair<const char*, CacheMode> kCases[] = {
    {"fp16", CacheMode::kAsServed},
    {"nuq4-1%", CacheMode::kStrict},
    {"nuq4-1%,sink=4,recent=20", CacheMode::kStrict},
    {"nuq4-1%,sink=4,recent=8", CacheMode::kAsServed},
    {"k=nuq3-2%,v=had+nuq4,recent=0", CacheMode::kAsServed},
    {"k=fp16,v=nuq4,recent=8", CacheMode::kAsServed},
    {"int8,layers=1:fp16", CacheMode::kStrict},
};

INSTANTIATE_TEST_SUITE_P(Caches, SlidingWindow, testing::ValuesIn(kCases), [](const auto& info) {
  return std::to_string(info.index) +
         (info.param.second == CacheMode::kStrict ? "Strict" : "AsServed");
});

}  // namespace
}  // namespace kvquant
