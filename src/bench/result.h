// The JSON document that every command writes:
// {"schema":1,"command":…,"model":…,"config":{…},"machine":{…},"results":[{…}]}
// with units in field names. One result per spec or configuration.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "kvquant/spec.h"
#include "model/model.h"

namespace kvquant {

// Insertion order is kept: files read in the order in which they were written.
using Json = nlohmann::ordered_json;

// CPU, cores, instruction sets, memory; kvquant's version and commit, its compiler and oneDNN.
Json machine_info();

// Name, architecture and sizes of the model, its fingerprint.
Json model_info(const Model& model);

// A document without results.
Json make_document(const std::string& command, const Json& model, const Json& config);

// {"spec": as typed, "spec_resolved": canonical, "mode": "strict" or "as-served"}
Json spec_fields(const CacheSpec& spec, CacheMode mode);

std::string version();  // "0.1.0 (commit)"

int64_t peak_rss_bytes();  // of this process so far

}  // namespace kvquant
