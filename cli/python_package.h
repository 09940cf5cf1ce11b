// Commands that the Python package does: the program hands over to it.
#pragma once

#include <string>
#include <vector>

namespace kvquant::cli {

// Becomes `python -m module arguments…`, with the package that this program is a part of, or of the
// build folder that it lies in. Returns only by throwing IoError: what needs it, and why it can't.
[[noreturn]] void become_python(const std::string& what, const std::string& module,
                                const std::vector<std::string>& arguments);

}  // namespace kvquant::cli
