// A model ready to run: checkpoint, tokenizer, weights and the threads, or the device, that work on
// it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/threads.h"
#include "model/chat_template.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "model/transformer.h"
#include "quant/calibration.h"

namespace kvquant {

class CudaDevice;
class DeviceTransformer;

struct ModelOptions {
  int num_threads = 0;  // 0: every core the process may use
  ThreadPool::Pin pin = ThreadPool::Pin::kYes;
  std::optional<Precision> precision;  // unset: bf16 where the CPU has bf16 dot products, else f32
  WeightStorage weights = WeightStorage::kAuto;
  // Tokens of the longest sequence. It matters to models of dynamic RoPE scaling only, when it is
  // above what they were trained for: they rotate by it, see Checkpoint::extend_context.
  int64_t context = 0;
  ValueDecoders value_decoders = ValueDecoders::kExpanded;
  // Of the GPUs that weights, caches and all work are on (find_model_device), a range of layers on
  // each; none: the CPU.
  std::vector<int> devices{};
};

class Model {
 public:
  // A GGUF file or a Hugging Face directory. Throws IoError, FormatError; with a device also
  // DeviceError, OutOfMemory, and std::invalid_argument for weights and value decoders that are not
  // the default, which devices don't have.
  static Model load(const std::string& path, const ModelOptions& options = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  const std::string& path() const { return path_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelConfig& config() const { return checkpoint_->config(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Of a model on the CPU, std::invalid_argument otherwise; make_runner() (model/runner.h) is for
  // both.
  Transformer& transformer();
  ThreadPool& pool() { return *pool_; }
  Precision precision() const { return precision_; }

  bool is_on_device() const { return on_device_ != nullptr; }
  // Of a model on devices.
  DeviceTransformer& device_transformer();
  const std::string& device_name() const;  // of several: one after the other
  KvShape kv_shape() const;                // wherever the model is

  // What caches of this model take their codebooks and ranges from; null until it is set. Throws
  // std::invalid_argument when it was made for another model.
  const std::shared_ptr<const Calibration>& calibration() const { return calibration_; }
  void set_calibration(Calibration calibration);

 private:
  struct OnDevice;
  Model();
  void load_transformer(const ModelOptions& options);

  std::string path_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Precision precision_ = Precision::kF32;
  std::unique_ptr<Transformer> transformer_;  // one of the two is null
  std::unique_ptr<OnDevice> on_device_;
  std::shared_ptr<const Calibration> calibration_;
};

// The model's shape as a calibration of it says.
CalibrationShape calibration_shape(const ModelConfig& config);

Precision default_precision();  // of this CPU

// Where the model that a user names lies: a path, or one of the two that are always at hand,
// "smollm2" (brought by scripts/get-model) and "embedded" (assets/ref5m). An empty name is smollm2
// when it is present, else embedded. Looks in $KVQUANT_MODELS, then beside the program, then in
// the source folder. Throws IoError saying what to do when it isn't there.
std::string find_model(const std::string& name);

// A file of assets/, found in the same way.
std::string find_asset(const std::string& name);

// Folders that may hold models/, assets/ and presets/, in the order in which they are looked at.
std::vector<std::string> data_roots();

}  // namespace kvquant
