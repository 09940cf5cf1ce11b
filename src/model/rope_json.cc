#include "model/rope_json.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "base/quote.h"
#include "kvquant/error.h"

namespace kvquant {
namespace {

using Type = RopeScalingType;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw FormatError(path + ": " + what);
}

struct TypeKeys {
  Type type;
  const char* name;
  std::vector<std::string_view> keys;  // besides those of all types
};

const TypeKeys& find_type(const std::string& name, const char* section, const std::string& path) {
  static const std::vector<TypeKeys> kTypes = {
      {Type::kNone, "default", {}},
      {Type::kLinear, "linear", {"factor"}},
      {Type::kDynamic, "dynamic", {"factor"}},
      {Type::kLlama3,
       "llama3",
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}},
      {Type::kYarn,
       "yarn",
       {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate", "finetuned"}},
  };
  const auto found = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](const TypeKeys& type) { return type.name == name; });
  if (found == kTypes.end()) {
    fail(path, std::string(section) + " of type " + quote(name) +
                   " is not supported; default, linear, dynamic, llama3 and yarn are");
  }
  return *found;
}

double require_number(const Json& section, const char* key, const std::string& path) {
  const auto value = json_number(section, key, path);
  if (!value) fail(path, std::string("rope scaling without ") + key);
  return *value;
}

// What llama3 and yarn count their wavelengths in. transformers gives the number beside the section
// precedence, and takes the context where there is none.
int64_t original_context(const Json& config, const Json& section, int64_t max_context,
                         const std::string& path) {
  constexpr const char* kKey = "original_max_position_embeddings";
  if (const auto value = json_integer(config, kKey, path)) return *value;
  return json_integer(section, kKey, path).value_or(max_context);
}

// Transformers takes 0 for absent where it says "or".
double number_or(const Json& section, const char* key, double otherwise, const std::string& path) {
  const double value = json_number(section, key, path).value_or(0);
  return value == 0 ? otherwise : value;
}

void read_yarn(const Json& section, int64_t max_context, const std::string& path,
               RopeScaling& out) {
  if (!section.contains("factor")) fail(path, "rope scaling without factor");
  if (const auto factor = json_number(section, "factor", path)) {
    out.factor = *factor;
  } else if (out.original_context > 0) {
    out.factor = static_cast<double>(max_context) / static_cast<double>(out.original_context);
  }
  out.beta_fast = number_or(section, "beta_fast", out.beta_fast, path);
  out.beta_slow = number_or(section, "beta_slow", out.beta_slow, path);
  out.truncate = json_boolean(section, "truncate", path).value_or(true);
  if (const auto factor = json_number(section, "attention_factor", path)) {
    out.attention_factor = *factor;
  } else {
    out.attention_factor = yarn_attention_factor(out.factor, number_or(section, "mscale", 0, path),
                                                 number_or(section, "mscale_all_dim", 0, path));
  }
}

RopeScaling read_scaling(const Json& config, const char* name, int64_t max_context,
                         const std::string& path) {
  const Json& section = config.at(name);
  const auto type = json_text(section, "rope_type", path);
  const auto old_type = json_text(section, "type", path);
  if (type && old_type && *type != *old_type) {
    fail(path, std::string(name) + " is of the types " + quote(*type) + " and " + quote(*old_type));
  }
  const TypeKeys& found = find_type(type ? *type : old_type.value_or("default"), name, path);
  for (const auto& [key, value] : section.items()) {
    const bool known = key == "rope_type" || key == "type" || key == "rope_theta" ||
                       (key == "partial_rotary_factor" && value == 1.0) || value.is_null() ||
                       std::find(found.keys.begin(), found.keys.end(), key) != found.keys.end();
    if (!known) {
      fail(path, std::string(name) + " of type " + found.name + " with " + quote(key) +
                     " is not supported");
    }
  }
  RopeScaling out{.type = found.type};
  switch (out.type) {
    case Type::kNone: break;
    case Type::kLinear: out.factor = require_number(section, "factor", path); break;
    case Type::kDynamic:
      out.factor = require_number(section, "factor", path);
      out.original_context = max_context;
      break;
    case Type::kLlama3:
      out.factor = require_number(section, "factor", path);
      out.low_freq_factor = require_number(section, "low_freq_factor", path);
      out.high_freq_factor = require_number(section, "high_freq_factor", path);
      out.original_context = original_context(config, section, max_context, path);
      break;
    case Type::kYarn:
      out.original_context = original_context(config, section, max_context, path);
      read_yarn(section, max_context, path, out);
      break;
  }
  return out;
}

}  // namespace

RopeConfig rope_from_json(const Json& config, int64_t max_context, const std::string& path) {
  RopeConfig out;
  out.theta = json_number(config, "rope_theta", path).value_or(out.theta);
  bool is_scaled = false;
  for (const char* name : {"rope_parameters", "rope_scaling"}) {  // the second counts
    const auto section = config.find(name);
    if (section == config.end() || section->is_null()) continue;
    if (!section->is_object()) fail(path, std::string(name) + " is neither null nor an object");
    const RopeScaling scaling = read_scaling(config, name, max_context, path);
    if (scaling.type != Type::kNone) {
      if (is_scaled && scaling != out.scaling) {
        fail(path, "rope_parameters and rope_scaling differ");
      }
      out.scaling = scaling;
      is_scaled = true;
    }
    out.theta = json_number(*section, "rope_theta", path).value_or(out.theta);
  }
  return out;
}

}  // namespace kvquant
