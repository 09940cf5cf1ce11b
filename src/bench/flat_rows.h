// Results as flat rows, for programs that read lines: each row repeats what all have in common.
#pragma once

#include <string>
#include <vector>

#include "bench/result.h"

namespace kvquant {

// One row per result of a document of make_document: command, model and its fingerprint, cpu,
// version, commit, what the document's config says, then the result's own fields, which come before
// those of the same name. What config says in an object is told by the object's `path`.
std::vector<Json> flat_rows(const Json& document);

// One JSON object per line.
std::string to_jsonl(const std::vector<Json>& rows);

// RFC 4180 but for its line ends, which are "\n": a line of names, a line per row; lists as
// "1;2;3", null as an empty field. Requires rows with the same names.
std::string to_csv(const std::vector<Json>& rows);

}  // namespace kvquant
