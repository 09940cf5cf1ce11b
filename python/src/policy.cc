// include/kvquant/policy.h in Python.
#include "kvquant/policy.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "engine.h"
#include "model/policy.h"

using namespace nanobind::literals;

namespace kvquant::python {
namespace {

// Sizes, or a model that has them.
using Config = std::variant<PolicyModel, std::shared_ptr<Engine>>;

PolicyModel sizes_of(const Config& config) {
  if (const auto* sizes = std::get_if<PolicyModel>(&config)) return *sizes;
  Engine& engine = *std::get<std::shared_ptr<Engine>>(config);
  return engine.guard.run([&] { return policy_model(engine.model); });
}

using Name = std::variant<KVPolicyName, std::string>;

KVPolicyName policy_of(const Name& name) {
  if (const auto* policy = std::get_if<KVPolicyName>(&name)) return *policy;
  return parse_policy_name(std::get<std::string>(name));
}

nb::dict build(const Config& config, const std::string& model_id, const Name& policy_name) {
  const CompressorConfig made = build_compressor_config_for_policy(
      sizes_of(config), model_id, to_string(policy_of(policy_name)));
  nb::dict out;
  out["policy"] = to_string(made.policy);
  out["model_id"] = made.model_id;
  out["spec"] = made.spec;
  out["ppl_budget"] = made.ppl_budget;
  out["key_codec"] = made.key_codec;
  out["value_codec"] = made.value_codec;
  out["sink_tokens"] = made.sink_tokens;
  out["recent_tokens"] = made.recent_tokens;
  out["use_hadamard_v"] = made.use_hadamard_v;
  out["use_ln_nullspace_v"] = made.use_ln_nullspace_v;
  return out;
}

// policy_bytes and choose_policy_for_run fill a small cache to forecast one: without the GIL.
template <class Fn>
auto released(Fn&& fn) {
  const nb::gil_scoped_release release;
  return fn();
}

}  // namespace

void bind_policy(nb::module_& module) {
  nb::enum_<KVPolicyName> names(module, "KVPolicyName", "From the least to the most compressed.");
  for (const KVPolicyName name : policy_names()) names.value(to_string(name).c_str(), name);
  // The spelling of published plans, as aliases.
  for (const auto& [alias, name] : {std::pair{"DEFAULT", "default"},
                                    {"HIGH_COMPRESSION", "high_compression"},
                                    {"MEMORY_EMERGENCY", "memory_emergency"}}) {
    names.attr(alias) = names.attr(name);
  }
  nb::class_<PolicyModel>(module, "PolicyModel", "What of a model decides the size of its cache.")
      .def(nb::new_([](int64_t num_layers, int64_t num_kv_heads, int64_t head_dim,
                       int64_t max_context, int64_t sliding_window, int64_t weight_bytes) {
             return PolicyModel{num_layers,  num_kv_heads,   head_dim,
                                max_context, sliding_window, weight_bytes};
           }),
           "num_layers"_a, "num_kv_heads"_a, "head_dim"_a, "max_context"_a = 0,
           "sliding_window"_a = 0, "weight_bytes"_a = 0,
           "max_context in tokens, 0: not known; sliding_window 0: none; weight_bytes in memory.")
      .def_ro("num_layers", &PolicyModel::num_layers)
      .def_ro("num_kv_heads", &PolicyModel::num_kv_heads)
      .def_ro("head_dim", &PolicyModel::head_dim)
      .def_ro("max_context", &PolicyModel::max_context)
      .def_ro("sliding_window", &PolicyModel::sliding_window)
      .def_ro("weight_bytes", &PolicyModel::weight_bytes);
  module.def("build_compressor_config_for_policy", &build, "config"_a, "model_id"_a,
             "policy_name"_a,
             "What a policy stores for a model: policy, model_id, spec, ppl_budget, key_codec,\n"
             "value_codec, sink_tokens, recent_tokens, use_hadamard_v, use_ln_nullspace_v.");
  module.def(
      "policy_bytes",
      [](const Config& config, const Name& name, int64_t batch, int64_t max_context) {
        const PolicyModel sizes = sizes_of(config);
        return released([&] { return policy_bytes(sizes, policy_of(name), batch, max_context); });
      },
      "config"_a, "policy_name"_a, "batch"_a, "max_context"_a,
      "Bytes of weights and of the caches of `batch` sequences of max_context tokens each.");
  module.def(
      "choose_policy_for_run",
      [](const Config& config, int64_t memory, int64_t batch, int64_t max_context,
         double ppl_budget) {
        const PolicyModel sizes = sizes_of(config);
        return released(
            [&] { return choose_policy_for_run(sizes, memory, batch, max_context, ppl_budget); });
      },
      "config"_a, "memory"_a, "batch"_a, "max_context"_a, "ppl_budget"_a = kNoPplBudget,
      "The least compressed policy that fits into `memory` bytes and whose ppl_budget (relative)\n"
      "is within the one given. ValueError when none is.");
}

}  // namespace kvquant::python
