// The forward pass of transformer.h on CUDA devices, or on the CPU that plays them: weights, cache
// and all that lies between stay there; tokens go in, hidden states or logits come out. Several
// devices have a range of layers each and work one after the other; what lies between two layers
// goes from one to the next through the host.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/device_cache.h"
#include "cache/device_split.h"
#include "model/checkpoint.h"
#include "model/sampler.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "ops/cuda_device.h"

namespace kvquant {

class DeviceTransformer {
 public:
  // Uploads the weights: as bf16 with Precision::kBF16, else as f32; codes of quantized files are
  // expanded. `checkpoint`, `devices` and `pool` must outlive this. Throws what load_weights
  // throws, and std::invalid_argument for more devices than layers.
  DeviceTransformer(const Checkpoint& checkpoint, Precision precision,
                    const std::vector<CudaDevice*>& devices, ThreadPool& pool);

  const ModelConfig& config() const { return config_; }
  const RopeTable& rope_table() const { return rope_; }
  KvShape kv_shape() const;
  const DeviceSplit& split() const { return split_; }  // for caches, too
  int64_t weight_bytes() const;                        // on all devices

  // See Transformer::forward. Hidden states after the last norm, a row for each token, chunk after
  // chunk, stay on the last device until the next call. The chunks together must be within the
  // cache's chunk_tokens; its rope table and split must be this one's.
  void forward(std::span<const ForwardChunk> chunks, DeviceCache& cache);
  // Rows [first_row, first_row + out.shape[0]) of the last forward: themselves, [rows, hidden], and
  // their logits, [rows, vocab_size]. Throw std::invalid_argument when there are no such rows.
  void hidden(int64_t first_row, TensorView<float, 2> out);
  void logits(int64_t first_row, TensorView<float, 2> out);
  // Logits of some hidden states, both on the host: hidden [num_rows, hidden] -> out [num_rows,
  // vocab_size].
  void logits(TensorView<const float, 2> hidden, TensorView<float, 2> out);
  // The most likely of the first num_tokens tokens behind row `row` of the last forward, in order,
  // ties to the lower id, after a penalty (Sampler); their logits alone are copied.
  static constexpr int64_t kMostLikely = 64;
  struct Likely {
    int64_t num_tokens = 0;
    int64_t count = 1;  // of them, at most kMostLikely
    std::span<const int32_t> penalised{};
    float penalty = 1;
  };
  std::vector<TokenLogit> most_likely(int64_t row, const Likely& asked);

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
    int64_t num_bytes() const;
    DeviceArray<float> attention_norm, qkv_bias, query_norm, key_norm, mlp_norm;
    Matrix qkv, output, gate, up, down;
  };
  struct Rows {  // floats on the device
    float* data;
    int64_t stride;
  };
  // Weights and rows of one device.
  struct Stage {
    explicit Stage(CudaDevice& of) : device(of) {}
    CudaDevice& device;
    std::vector<Layer> layers;
    int64_t first_layer = 0;

    // Of one call, [tokens of the batch, ...].
    DeviceArray<int32_t> tokens{device};
    DeviceArray<int64_t> positions{device};
    DeviceArray<float> residual{device}, normed{device}, qkv{device}, attention{device};
    DeviceArray<float> mlp{device};         // gate, up
    DeviceArray<BFloat16> rounded{device};  // factors of a product, if weights are bf16
    const int64_t* positions_at = nullptr;
  };
  // A call's tokens, wherever they are going.
  struct Batch {
    std::span<const ForwardChunk> chunks;
    std::vector<int32_t> tokens;
    std::vector<int64_t> positions;
    int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  };
  static Batch batch_of(std::span<const ForwardChunk> chunks, const DeviceCache& cache);
  void reserve(Stage& stage, int64_t num_rows) const;
  void run_stage(size_t index, const Batch& batch, DeviceCache& cache);
  void hand_on(Stage& from, Stage& to, int64_t num_rows);
  // Of several matrices in a row with the same x it is rounded once.
  void round(Stage& stage, Rows x, int64_t num_rows, int64_t width);
  void multiply(Stage& stage, const Matrix& matrix, Rows x, Rows out, int64_t num_rows,
                Epilogue epilogue);
  void norm(Stage& stage, Rows x, const DeviceArray<float>& weight, Rows out, int64_t num_rows);
  void finish_qkv(Stage& stage, const Layer& layer, int64_t num_rows);
  void attention_block(Stage& stage, int64_t index, const Batch& batch, DeviceCache& cache);
  void mlp_block(Stage& stage, const Layer& layer, int64_t num_rows);
  Stage& last() { return *stages_.back(); }
  void find_logits(const float* hidden, int64_t num_rows);
  const float* hidden_rows(int64_t first_row, int64_t num_rows);
  int64_t qkv_width() const;

  const ModelConfig& config_;
  Precision precision_;
  DeviceSplit split_;
  RopeTable rope_;
  std::vector<std::unique_ptr<Stage>> stages_;
  DeviceArray<float> embedding_;   // [vocab_size, hidden], on the first device
  DeviceArray<float> final_norm_;  // from here on the last one's
  std::unique_ptr<Matrix> lm_head_;
  DeviceArray<float> asked_, logits_;
  DeviceArray<int32_t> named_;  // tokens with a penalty
  DeviceArray<float> likely_;   // of segments, then of all
  DeviceArray<int32_t> likely_ids_, are_finite_;
  std::vector<float> handed_on_;  // residuals between two devices
  int64_t num_rows_ = 0;          // of the last forward
};

}  // namespace kvquant
