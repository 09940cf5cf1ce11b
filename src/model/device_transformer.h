// The forward pass of transformer.h on a CUDA device, or on the CPU that plays one: weights, cache
// and all that lies between stay there; tokens go in, hidden states or logits come out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/device_cache.h"
#include "model/checkpoint.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "ops/cuda_device.h"

namespace kvquant {

class DeviceTransformer {
 public:
  // Uploads the weights: as bf16 with Precision::kBF16, else as f32; codes of quantized files are
  // expanded. `checkpoint`, `device` and `pool` must outlive this. Throws what load_weights throws.
  DeviceTransformer(const Checkpoint& checkpoint, Precision precision, CudaDevice& device,
                    ThreadPool& pool);

  const ModelConfig& config() const { return config_; }
  const RopeTable& rope_table() const { return rope_; }
  KvShape kv_shape() const;
  int64_t weight_bytes() const;  // on the device

  // See Transformer::forward. Hidden states after the last norm, a row for each token, chunk after
  // chunk, stay on the device until the next call. The chunks together must be within the cache's
  // chunk_tokens; its rope table must be this one's.
  void forward(std::span<const ForwardChunk> chunks, DeviceCache& cache);
  // Rows [first_row, first_row + out.shape[0]) of the last forward: themselves, [rows, hidden], and
  // their logits, [rows, vocab_size]. Throw std::invalid_argument when there are no such rows.
  void hidden(int64_t first_row, TensorView<float, 2> out);
  void logits(int64_t first_row, TensorView<float, 2> out);
  // Logits of some hidden states, both on the host: hidden [num_rows, hidden] -> out [num_rows,
  // vocab_size].
  void logits(TensorView<const float, 2> hidden, TensorView<float, 2> out);
  // The most likely token behind row `row` of the last forward, without copying its logits.
  int32_t most_likely(int64_t row);

 private:
  struct Matrix {
    Matrix(CudaDevice& device, const PackedMatrix& from, Precision precision);
    int64_t num_bytes() const { return f32.num_bytes() + bf16.num_bytes(); }
    DeviceArray<float> f32;  // one of the two is empty
    DeviceArray<BFloat16> bf16;
    int64_t num_out, num_in;
  };
  struct Layer {
    Layer(CudaDevice& device, const LayerWeights& from, Precision precision);
    DeviceArray<float> attention_norm, qkv_bias, query_norm, key_norm, mlp_norm;
    Matrix qkv, output, gate, up, down;
  };
  struct Rows {  // floats on the device
    float* data;
    int64_t stride;
  };
  void upload_batch(std::span<const ForwardChunk> chunks, const DeviceCache& cache);
  // Of several matrices in a row with the same x it is rounded once.
  void round(Rows x, int64_t num_rows, int64_t width);
  void multiply(const Matrix& matrix, Rows x, Rows out, int64_t num_rows, Epilogue epilogue);
  void norm(Rows x, const DeviceArray<float>& weight, Rows out, int64_t num_rows);
  void finish_qkv(const Layer& layer, int64_t num_rows);
  void attention_block(int64_t index, std::span<const ForwardChunk> chunks, DeviceCache& cache,
                       int64_t num_rows);
  void mlp_block(const Layer& layer, int64_t num_rows);
  void find_logits(const float* hidden, int64_t num_rows);
  const float* hidden_rows(int64_t first_row, int64_t num_rows) const;
  int64_t qkv_width() const;

  const ModelConfig& config_;
  Precision precision_;
  CudaDevice& device_;
  RopeTable rope_;
  std::vector<Layer> layers_;
  DeviceArray<float> final_norm_;
  DeviceArray<float> embedding_;  // [vocab_size, hidden]
  std::unique_ptr<Matrix> lm_head_;

  // Of one call, [tokens of the batch, ...].
  DeviceArray<int32_t> tokens_;
  DeviceArray<int64_t> positions_;
  DeviceArray<float> residual_, normed_, qkv_, attention_, mlp_;  // mlp_: gate, up
  DeviceArray<BFloat16> rounded_;  // factors of a product, if weights are bf16
  const int32_t* tokens_at_ = nullptr;
  const int64_t* positions_at_ = nullptr;
  DeviceArray<float> asked_, logits_;
  DeviceArray<int32_t> best_, are_finite_;
  int64_t num_rows_ = 0;  // of the last forward
};

}  // namespace kvquant
