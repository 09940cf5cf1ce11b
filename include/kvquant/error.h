// The errors kvquant throws. A caller's mistake (wrong shape, bad spec) is std::invalid_argument;
// the world's faults are the types below. Messages name the thing, the rule and the value found, in
// one line. The command line maps invalid_argument, FormatError and IoError to exit code 2,
// OutOfMemory and DeviceError to 3.
#pragma once

#include <stdexcept>

namespace kvquant {

// A file or string is not what it claims to be: truncated, corrupt, unsupported.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A file can't be opened, read or written.
struct IoError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Memory or disk space ran out.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A device failed or is missing.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace kvquant
