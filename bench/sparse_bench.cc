// Blocked sparse storage beside plain arrays: appends of one token, and the dense form. 10 of 1024
// channels per token, fp16 values.
#include "kvquant/sparse.h"

#include <benchmark/benchmark.h>

#include <stdexcept>
#include <vector>

namespace {

using kvquant::BlockedCSRMatrix;

constexpr int64_t kChannels = 1024;
constexpr int64_t kPerToken = 10;

std::vector<int32_t> channels_of(int64_t token) {
  std::vector<int32_t> channels;
  for (int64_t j = 0; j < kPerToken; ++j) {
    channels.push_back(static_cast<int32_t>(j * 102 + token * 37 % 102));
  }
  return channels;
}

std::vector<float> values_of(int64_t token) {
  return std::vector<float>(kPerToken, static_cast<float>(token % 2000));
}

BlockedCSRMatrix filled(int64_t num_tokens) {
  BlockedCSRMatrix matrix(kChannels, 256, kvquant::SparseValueType::kF16);
  for (int64_t t = 0; t < num_tokens; ++t) matrix.append_token(channels_of(t), values_of(t));
  return matrix;
}

void append_token(benchmark::State& state) {
  const auto channels = channels_of(0);
  const auto values = values_of(1);
  for (auto _ : state) {
    BlockedCSRMatrix matrix(kChannels, 256, kvquant::SparseValueType::kF16);
    for (int64_t t = 0; t < state.range(0); ++t) matrix.append_token(channels, values);
    benchmark::DoNotOptimize(matrix.num_nonzeros());
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(append_token)->Arg(1024)->Arg(8192)->Arg(32768);

std::vector<float> naive_dense(const kvquant::StandardSparse& standard) {
  const size_t num_tokens = standard.offsets.size() - 1;
  std::vector<float> dense(num_tokens * kChannels);
  for (size_t t = 0; t < num_tokens; ++t) {
    for (auto e = standard.offsets[t]; e < standard.offsets[t + 1]; ++e) {
      const auto entry = static_cast<size_t>(e);
      dense[t * kChannels + static_cast<size_t>(standard.indices[entry])] = standard.values[entry];
    }
  }
  return dense;
}

void to_dense(benchmark::State& state) {
  const BlockedCSRMatrix matrix = filled(state.range(0));
  if (matrix.to_dense().values != naive_dense(matrix.to_standard_csr())) {
    throw std::runtime_error("to_dense: differs from the naive loop");
  }
  for (auto _ : state) benchmark::DoNotOptimize(matrix.to_dense().values.data());
  state.SetBytesProcessed(state.iterations() * state.range(0) * kChannels * 4);
}
BENCHMARK(to_dense)->Arg(1024)->Arg(8192);

void to_dense_naive(benchmark::State& state) {
  const auto standard = filled(state.range(0)).to_standard_csr();
  for (auto _ : state) benchmark::DoNotOptimize(naive_dense(standard).data());
  state.SetBytesProcessed(state.iterations() * state.range(0) * kChannels * 4);
}
BENCHMARK(to_dense_naive)->Arg(1024)->Arg(8192);

}  // namespace
