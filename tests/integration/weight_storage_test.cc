// What keeping weights as 8-bit codes costs. The figures are printed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "eval/perplexity.h"
#include "model/model.h"

namespace kvquant {
namespace {

double perplexity_of(WeightStorage weights, int64_t& weight_bytes) {
  ModelOptions options;
  options.num_threads = 2;
  options.weights = weights;
  Model model = Model::load(find_model("embedded"), options);
  weight_bytes = model.transformer().weight_bytes();
  const auto tokens =
      model.tokenizer().encode(read_text(find_asset("sample.txt")), Tokenizer::Special::kAsText);
  const std::vector<CacheSpec> specs = {parse_spec("fp16")};
  return evaluate_perplexity(model, tokens, specs, {.window = 1024})[0].perplexity;
}

TEST(WeightStorage, CodesOf8BitsCostLittleAndTakeHalfTheMemory) {
  int64_t float_bytes = 0, code_bytes = 0;
  const double floats = perplexity_of(WeightStorage::kBF16, float_bytes);
  const double codes = perplexity_of(WeightStorage::kInt8, code_bytes);
  fmt::print("perplexity with bf16 weights {:.4f} ({} bytes), with 8-bit codes {:.4f} ({} bytes)\n",
             floats, float_bytes, codes, code_bytes);
  // 0.20% on AVX-512 and AMX alike; which bf16 sums are rounded how moves it by some hundredths.
  EXPECT_NEAR(codes / floats, 1.002, 0.001);
  EXPECT_NEAR(static_cast<double>(code_bytes) / static_cast<double>(float_bytes), 9.0 / 16, 0.01);
}

}  // namespace
}  // namespace kvquant
