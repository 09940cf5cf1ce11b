#include "quant/per_layer_files.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "base/check.h"
#include "base/file.h"
#include "formats/nuq_codebook.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr const char* kCodebookPrefix = "codebook_layer";
constexpr const char* kScalesPrefix = "scales_layer";

std::string file_in(const std::string& dir, const char* name) {
  return (std::filesystem::path(dir) / name).string();
}

std::string codebooks_path(const std::string& dir) { return file_in(dir, "codebooks.safetensors"); }
std::string scales_path(const std::string& dir) {
  return file_in(dir, "scaling_factors.safetensors");
}

// The rule that a layer breaks, empty when there is none.
std::string problem_of(const LayerCodebook& layer) {
  const int64_t n = layer.num_levels, books = layer.num_heads == 0 ? 1 : layer.num_heads;
  if (n != 4 && n != 8 && n != 16) return fmt::format("{} levels are not 4, 8 or 16", n);
  if (books < 0 || static_cast<int64_t>(layer.levels.size()) / n != books ||
      static_cast<int64_t>(layer.levels.size()) % n != 0) {
    return fmt::format("{} numbers are not {} levels of {} heads", layer.levels.size(), n,
                       layer.num_heads);
  }
  for (int64_t h = 0; h < books; ++h) {
    try {
      make_codebook(std::span(layer.levels).subspan(h * n, n));
    } catch (const std::invalid_argument& error) {
      return fmt::format("head {}: {}", h, error.what());
    }
  }
  return "";
}

std::string problem_of(const LayerScalingFactors& layer) {
  if (layer.num_heads <= 0 || layer.head_dim <= 0 ||
      static_cast<int64_t>(layer.scales.size()) / layer.head_dim != layer.num_heads ||
      static_cast<int64_t>(layer.scales.size()) % layer.head_dim != 0) {
    return fmt::format("{} numbers are not {} heads of {} channels", layer.scales.size(),
                       layer.num_heads, layer.head_dim);
  }
  for (size_t i = 0; i < layer.scales.size(); ++i) {
    if (std::isfinite(layer.scales[i]) && layer.scales[i] >= 0) continue;
    return fmt::format("scale {} is {}, negative or not finite", i, layer.scales[i]);
  }
  return "";
}

// The rule that the layers break together.
std::string problem_of_all(std::span<const LayerCodebook>) { return ""; }

std::string problem_of_all(std::span<const LayerScalingFactors> layers) {
  for (const LayerScalingFactors& layer : layers) {
    if (layer.num_heads == layers[0].num_heads && layer.head_dim == layers[0].head_dim) continue;
    return fmt::format("{}{} is [{}, {}], {}0 [{}, {}]", kScalesPrefix, &layer - layers.data(),
                       layer.num_heads, layer.head_dim, kScalesPrefix, layers[0].num_heads,
                       layers[0].head_dim);
  }
  return "";
}

std::vector<int64_t> shape_of(const LayerCodebook& layer) {
  if (layer.num_heads == 0) return {layer.num_levels};
  return {layer.num_heads, layer.num_levels};
}
std::vector<int64_t> shape_of(const LayerScalingFactors& layer) {
  return {layer.num_heads, layer.head_dim};
}

const std::vector<float>& numbers_of(const LayerCodebook& layer) { return layer.levels; }
const std::vector<float>& numbers_of(const LayerScalingFactors& layer) { return layer.scales; }

template <class Layer>
void save_layers(const std::string& path, const char* prefix, std::span<const Layer> layers) {
  check_arg(!layers.empty(), fmt::format("{}: there are no layers to save", path));
  std::vector<SafetensorsEntry> entries;
  for (const Layer& layer : layers) {
    const std::string name = fmt::format("{}{}", prefix, entries.size());
    const std::string problem = problem_of(layer);
    check_arg(problem.empty(), fmt::format("{}: tensor {}: {}", path, name, problem));
    entries.push_back({name, "F32", shape_of(layer)});
  }
  const std::string problem = problem_of_all(layers);
  check_arg(problem.empty(), fmt::format("{}: {}", path, problem));
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) {
    throw IoError(fmt::format("{}: can't make the folder: {}", folder.string(), error.message()));
  }
  write_safetensors(path, entries, {}, [&](size_t i, const ByteSink& sink) {
    sink(std::as_bytes(std::span(numbers_of(layers[i]))));
  });
}

// `make_layer` makes a layer of a shape of one or two dimensions and its numbers.
template <class Layer>
std::vector<Layer> parse_layers(
    std::span<const std::byte> bytes, const std::string& path, const char* prefix,
    const std::function<Layer(const std::vector<int64_t>&, std::vector<float>)>& make_layer) {
  const Safetensors file = parse_safetensors(bytes, path);
  if (file.tensors.empty()) throw FormatError(path + ": there is no layer");
  std::vector<Layer> layers;
  for (size_t i = 0; i < file.tensors.size(); ++i) {  // as many layers as tensors: no others
    const std::string name = fmt::format("{}{}", prefix, i);
    const auto fail = [&](const std::string& what) {
      throw FormatError(fmt::format("{}: tensor {}: {}", path, name, what));
    };
    const SafetensorsTensor* tensor = file.find(name);
    if (tensor == nullptr) {
      fail(fmt::format("is missing; {} tensors must be layers 0 to {}", file.tensors.size(),
                       file.tensors.size() - 1));
    }
    const std::vector<int64_t>& shape = tensor->shape;
    if (tensor->dtype != "F32") fail("is " + tensor->dtype + ", not F32");
    if (tensor->data.empty() || shape.empty() || shape.size() > 2) {
      fail(fmt::format("shape [{}] is not one of this file's", fmt::join(shape, ", ")));
    }
    std::vector<float> numbers(tensor->data.size() / sizeof(float));
    std::memcpy(numbers.data(), tensor->data.data(), tensor->data.size());
    layers.push_back(make_layer(shape, std::move(numbers)));
    const std::string problem = problem_of(layers.back());
    if (!problem.empty()) fail(problem);
  }
  const std::string problem = problem_of_all(layers);
  if (!problem.empty()) throw FormatError(fmt::format("{}: {}", path, problem));
  return layers;
}

}  // namespace

std::vector<LayerCodebook> parse_per_layer_codebooks(std::span<const std::byte> bytes,
                                                     const std::string& path) {
  return parse_layers<LayerCodebook>(
      bytes, path, kCodebookPrefix,
      [](const std::vector<int64_t>& shape, std::vector<float> levels) -> LayerCodebook {
        return {shape.size() == 2 ? shape[0] : 0, shape.back(), std::move(levels)};
      });
}

std::vector<LayerScalingFactors> parse_per_layer_scaling_factors(std::span<const std::byte> bytes,
                                                                 const std::string& path) {
  return parse_layers<LayerScalingFactors>(
      bytes, path, kScalesPrefix,
      [](const std::vector<int64_t>& shape, std::vector<float> scales) -> LayerScalingFactors {
        return {shape.size() == 2 ? shape[0] : 0, shape.back(), std::move(scales)};
      });
}

void save_per_layer_codebooks(const std::string& dir, std::span<const LayerCodebook> layers) {
  save_layers(codebooks_path(dir), kCodebookPrefix, layers);
}

std::vector<LayerCodebook> load_per_layer_codebooks(const std::string& dir) {
  const MappedFile file(codebooks_path(dir));
  return parse_per_layer_codebooks(file.bytes(), file.path());
}

void save_per_layer_scaling_factors(const std::string& dir,
                                    std::span<const LayerScalingFactors> layers) {
  save_layers(scales_path(dir), kScalesPrefix, layers);
}

std::vector<LayerScalingFactors> load_per_layer_scaling_factors(const std::string& dir) {
  const MappedFile file(scales_path(dir));
  return parse_per_layer_scaling_factors(file.bytes(), file.path());
}

}  // namespace kvquant
