// Llama checkpoints in Hugging Face directories.
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/quote.h"
#include "formats/json_fields.h"
#include "formats/safetensors.h"
#include "kvquant/error.h"
#include "model/file_checkpoint.h"
#include "model/tokenizer_json.h"
#include "model/weight_names.h"

namespace kvquant {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxTextBytes = int64_t{256} << 20;  // of a JSON file
constexpr const char* kEmbeddings = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string text_if_present(const fs::path& path) {
  return fs::exists(path) ? read_text(path.string(), kMaxTextBytes) : "";
}

// The *.safetensors files of the checkpoint and the tensors that the index says are in them:
// model.safetensors, which needs no index and is taken first as transformers does, or those of the
// index. Other files of the folder are not read.
std::map<std::string, std::vector<std::string>> weight_files(const fs::path& folder) {
  const fs::path index = folder / "model.safetensors.index.json";
  const fs::path single = folder / "model.safetensors";
  if (fs::exists(single)) return {{single.string(), {}}};
  if (!fs::exists(index)) {
    throw FormatError(folder.string() +
                      ": neither model.safetensors nor model.safetensors.index.json is there");
  }
  std::map<std::string, std::vector<std::string>> files;
  const auto text = read_text(index.string(), kMaxTextBytes);
  for (const auto& [tensor, file] : parse_safetensors_index(text, index.string())) {
    files[(folder / file).string()].push_back(tensor);
  }
  for (const auto& [file, tensors] : files) {
    if (!fs::exists(file)) {
      throw IoError(file + ": missing, " + index.string() + " says that " + quote(tensors[0]) +
                    " is there");
    }
  }
  return files;
}

void check_has(const Safetensors& file, const std::vector<std::string>& tensors,
               const std::string& path) {
  for (const std::string& tensor : tensors) {
    if (file.find(tensor) == nullptr) {
      throw FormatError(path + ": tensor " + quote(tensor) +
                        " is not there, model.safetensors.index.json says it is");
    }
  }
}

// Old checkpoints hold the rotation's frequencies, which follow from the config.
bool is_ignored(const std::string& name) { return name.ends_with(".rotary_emb.inv_freq"); }

void add_weights(CheckpointParts& parts, const Safetensors& file, const std::string& path) {
  for (const SafetensorsTensor& tensor : file.tensors) {
    if (is_ignored(tensor.name)) continue;
    const WeightFormat* format = find_weight_format(tensor.dtype);
    if (format == nullptr) {
      throw FormatError(path + ": tensor " + quote(tensor.name) + " has dtype " +
                        quote(tensor.dtype) + ", not F32, F16 or BF16");
    }
    const StoredWeight weight{tensor.shape, format, tensor.data, 0};
    if (!parts.weights.emplace(tensor.name, weight).second) {
      throw FormatError(path + ": tensor " + quote(tensor.name) + " is in two files");
    }
  }
}

// Of tied weights a file may hold only the head, or both; the embeddings count.
void resolve_tied_head(CheckpointParts& parts) {
  if (!parts.config.tied_embeddings) return;
  const auto head = parts.weights.find(kHead);
  if (head == parts.weights.end()) return;
  parts.weights.emplace(kEmbeddings, head->second);
  parts.weights.erase(head);
}

// A bias or a second norm would change what the model computes.
void refuse_unknown_weights(const CheckpointParts& parts, const std::string& path) {
  std::set<std::string> known;
  for (const auto& weight : llama_weights(parts.config)) known.insert(weight.name);
  for (const auto& [name, weight] : parts.weights) {
    if (!known.contains(name)) {
      throw FormatError(path + ": tensor " + quote(name) + " is not supported");
    }
  }
}

std::vector<int32_t> eos_tokens(const fs::path& folder, const std::string& config_text) {
  const fs::path generation = folder / "generation_config.json";
  std::vector<int64_t> ids;
  if (const auto text = text_if_present(generation); !text.empty()) {
    ids = json_integers(parse_json_object(text, generation.string()), "eos_token_id",
                        generation.string());
  }
  const std::string config = (folder / "config.json").string();
  if (ids.empty())
    ids = json_integers(parse_json_object(config_text, config), "eos_token_id", config);
  std::vector<int32_t> out;
  for (const int64_t id : ids) {
    if (id < 0 || id > INT32_MAX) {
      throw FormatError(folder.string() + ": eos_token_id " + std::to_string(id) +
                        " is not a token");
    }
    out.push_back(static_cast<int32_t>(id));
  }
  return out;
}

void read_tokenizer(CheckpointParts& parts, const fs::path& folder) {
  try {
    parts.tokenizer = load_tokenizer_folder(folder.string());
  } catch (const FormatError& error) {
    parts.tokenizer_error = error.what();
  } catch (const IoError& error) {
    parts.tokenizer_error = error.what();
  }
}

}  // namespace

std::unique_ptr<Checkpoint> open_hugging_face_checkpoint(const std::string& path) {
  const fs::path folder(path);
  const std::string config_path = (folder / "config.json").string();
  const std::string config_text = read_text(config_path, kMaxTextBytes);
  CheckpointParts parts;
  parts.config = config_from_json(config_text, config_path);
  const fs::path whole = fs::absolute(folder).lexically_normal();
  parts.config.name = (whole.has_filename() ? whole : whole.parent_path()).filename().string();
  for (const auto& [file, tensors] : weight_files(folder)) {
    parts.files.emplace_back(file);
    const Safetensors safetensors = parse_safetensors(parts.files.back().bytes(), file);
    check_has(safetensors, tensors, file);
    add_weights(parts, safetensors, file);
  }
  resolve_tied_head(parts);
  refuse_unknown_weights(parts, path);
  parts.eos_token_ids = eos_tokens(folder, config_text);
  read_tokenizer(parts, folder);
  return make_checkpoint(std::move(parts), path);
}

}  // namespace kvquant
