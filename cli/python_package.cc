#include "cli/python_package.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kvquant/error.h"

namespace kvquant::cli {
namespace {

namespace fs = std::filesystem;

struct Place {
  fs::path root;    // the folder that has the package kvquant in it; empty: where Python looks
  fs::path python;  // the interpreter; empty: python3 of the PATH
};

fs::path existing(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) ? path : fs::path();
}

// An installed program is PREFIX/lib/python3.x/site-packages/kvquant/bin/kvquant.
Place find_package() {
  const fs::path folder = fs::read_symlink("/proc/self/exe").parent_path();
  const fs::path installed = folder.parent_path(), built = folder / "python";
  if (!existing(installed / "report" / "__main__.py").empty()) {
    const fs::path root = installed.parent_path();
    const fs::path prefix = root.parent_path().parent_path().parent_path();
    return {root, existing(prefix / "bin" / "python3")};
  }
  if (!existing(built / "kvquant" / "report" / "__main__.py").empty()) {
    return {built, existing(folder / "venv" / "bin" / "python")};
  }
  return {};
}

}  // namespace

void become_python(const std::string& what, const std::string& module,
                   const std::vector<std::string>& arguments) {
  const Place place = find_package();
  if (!place.root.empty()) {
    const char* known = std::getenv("PYTHONPATH");
    std::string folders = place.root.string();
    if (known != nullptr && *known != '\0') folders.append(":").append(known);
    setenv("PYTHONPATH", folders.c_str(), 1);
  }
  std::vector<std::string> command = {place.python.empty() ? "python3" : place.python.string(),
                                      "-m", module};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (auto& argument : command) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  std::fflush(nullptr);
  execvp(pointers[0], pointers.data());
  throw IoError(fmt::format("{} needs Python and the package kvquant: can't run {}: {}", what,
                            command[0], std::strerror(errno)));
}

}  // namespace kvquant::cli
