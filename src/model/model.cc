#include "model/model.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/backend.h"
#include "base/check.h"
#include "kvquant/error.h"
#include "model/device_transformer.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSmolLm2File = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

// Folders that may hold models/ and assets/: the one above the program, that of the library that
// holds this code (a Python package), and the source tree.
std::vector<fs::path> roots() {
  std::vector<fs::path> out;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) out.push_back(program.parent_path().parent_path());
  Dl_info library{};
  if (dladdr(kSmolLm2File, &library) != 0 && library.dli_fname != nullptr) {
    const fs::path path = fs::canonical(library.dli_fname, error);
    if (!error && path != program) out.push_back(path.parent_path());
  }
  out.emplace_back(KVQUANT_SOURCE_DIR);
  return out;
}

std::string find_smollm2() {
  if (const char* folder = std::getenv("KVQUANT_MODELS"); folder != nullptr && *folder != '\0') {
    const fs::path path = fs::path(folder) / kSmolLm2File;
    return fs::exists(path) ? path.string() : "";
  }
  for (const fs::path& root : roots()) {
    const fs::path path = root / "models" / kSmolLm2File;
    if (fs::exists(path)) return path.string();
  }
  return "";
}

}  // namespace

CalibrationShape calibration_shape(const ModelConfig& config) {
  return {config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim};
}

void Model::set_calibration(Calibration calibration) {
  check_calibration_fits(calibration, checkpoint().fingerprint(), calibration_shape(config()));
  calibration_ = std::make_shared<const Calibration>(std::move(calibration));
}

Precision default_precision() {
  const auto backends = available_backends();
  const bool has_bf16 =
      std::find(backends.begin(), backends.end(), Backend::kAvx512Bf16) != backends.end();
  return has_bf16 ? Precision::kBF16 : Precision::kF32;
}

struct Model::OnDevice {
  OnDevice(const std::vector<int>& indices, const Checkpoint& checkpoint, Precision precision,
           ThreadPool& pool) {
    std::vector<CudaDevice*> pointers;
    for (const int index : indices) {
      name += (name.empty() ? "" : ", ") + find_model_device(index).name;
      devices.push_back(open_model_device(index, pool));
      pointers.push_back(devices.back().get());
    }
    transformer = std::make_unique<DeviceTransformer>(checkpoint, precision, pointers, pool);
  }

  std::string name;
  std::vector<std::unique_ptr<CudaDevice>> devices;
  std::unique_ptr<DeviceTransformer> transformer;
};

Model::Model() = default;
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Transformer& Model::transformer() {
  check_arg(transformer_ != nullptr, "the model is on a GPU, where this can't be done");
  return *transformer_;
}

DeviceTransformer& Model::device_transformer() { return *on_device_->transformer; }
const std::string& Model::device_name() const { return on_device_->name; }

KvShape Model::kv_shape() const {
  return is_on_device() ? on_device_->transformer->kv_shape() : transformer_->kv_shape();
}

void Model::load_transformer(const ModelOptions& options) {
  precision_ = options.precision.value_or(default_precision());
  if (!options.devices.empty()) {
    on_device_ = std::make_unique<OnDevice>(options.devices, *checkpoint_, precision_, *pool_);
    return;
  }
  transformer_ = std::make_unique<Transformer>(*checkpoint_, precision_, *pool_, options.weights);
  transformer_->set_value_decoders(options.value_decoders);
}

Model Model::load(const std::string& path, const ModelOptions& options) {
  check_arg(options.devices.empty() || (options.weights == WeightStorage::kAuto &&
                                        options.value_decoders == ValueDecoders::kExpanded),
            "models on GPUs have weights as precise as their arithmetic, and no absorbed decoders");
  for (const int index : options.devices) find_model_device(index);  // before anything is read
  Model model;
  model.path_ = path;
  model.checkpoint_ = open_checkpoint(path);
  if (model.config().rope_scaling.type == RopeScalingType::kDynamic &&
      options.context > model.config().max_context) {
    model.checkpoint_->extend_context(options.context);
  }
  model.tokenizer_ = std::make_unique<Tokenizer>(model.checkpoint_->tokenizer());
  model.pool_ = std::make_unique<ThreadPool>(options.num_threads, options.pin);
  try {
    model.load_transformer(options);
  } catch (const FormatError& error) {  // of weights, which don't know where they come from
    throw FormatError(path + ": " + error.what());
  }
  return model;
}

std::vector<std::string> data_roots() {
  std::vector<std::string> out;
  for (const fs::path& root : roots()) out.push_back(root.string());
  return out;
}

std::string find_asset(const std::string& name) {
  for (const fs::path& root : roots()) {
    const fs::path path = root / "assets" / name;
    if (fs::exists(path)) return path.string();
  }
  throw IoError("assets/" + name + " is missing: run kvquant from a checkout of the project");
}

std::string find_model(const std::string& name) {
  if (name.empty()) {
    const std::string smollm2 = find_smollm2();
    return smollm2.empty() ? find_asset("ref5m") : smollm2;
  }
  if (name == "embedded") return find_asset("ref5m");
  if (name == "smollm2") {
    const std::string path = find_smollm2();
    if (path.empty()) {
      throw IoError(
          "model smollm2 is not here yet: run scripts/get-model smollm2, or choose "
          "-m embedded");
    }
    return path;
  }
  if (!fs::exists(name)) {
    throw IoError("model " + name +
                  " does not exist: give a GGUF file, a Hugging Face directory, smollm2 or "
                  "embedded");
  }
  return name;
}

}  // namespace kvquant
