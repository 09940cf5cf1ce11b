#include "cli/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "base/threads.h"

namespace kvquant::cli {
namespace {

constexpr size_t kMaxKept = 4096;  // bytes of the end of stderr

struct Pipe {
  int read = -1, write = -1;

  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      throw std::system_error(errno, std::generic_category(), "cannot make a pipe");
    }
    read = ends[0], write = ends[1];
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    close(read);
    close_write();
  }
  void close_write() {
    if (write >= 0) close(write);
    write = -1;
  }
};

// Until every writer has closed it; the last bytes.
std::string read_end(int fd) {
  std::string text;
  char bytes[1024];
  for (;;) {
    const ssize_t n = read(fd, bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return text;
    text.append(bytes, static_cast<size_t>(n));
    if (text.size() > kMaxKept) text.erase(0, text.size() - kMaxKept);
  }
}

std::string last_line(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  const size_t begin = text.find_last_of("\n\r");
  return begin == std::string::npos ? text : text.substr(begin + 1);
}

// In the child, after fork: nothing but system calls. Returns only when exec fails.
void become(char* const* arguments, pid_t parent, int err, int out) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // it has ended in the meantime
  if (err >= 0) dup2(err, STDERR_FILENO);
  if (out >= 0) dup2(out, STDOUT_FILENO);
  signal(SIGINT, SIG_DFL);
  unpin_calling_thread();
  execvp(arguments[0], arguments);
}

}  // namespace

ChildOutcome run_child(const std::vector<std::string>& command, ChildStderr err) {
  std::vector<char*> arguments;
  for (const auto& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  Pipe kept, failed;  // failed: the errno of exec
  std::fflush(nullptr);
  const int out = err == ChildStderr::kKeptAlone ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;
  num_available_cores();  // found out before the fork
  const pid_t parent = getpid(), child = fork();
  if (child < 0) throw std::system_error(errno, std::generic_category(), "cannot start a process");
  if (child == 0) {
    become(arguments.data(), parent, err == ChildStderr::kShared ? -1 : kept.write, out);
    const int error = errno;
    if (write(failed.write, &error, sizeof error) < 0) _exit(126);
    _exit(127);
  }
  if (out >= 0) close(out);
  kept.close_write();
  failed.close_write();
  ChildOutcome outcome;
  outcome.message = last_line(read_end(kept.read));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  int error = 0;
  if (read(failed.read, &error, sizeof error) == sizeof error) {
    throw std::invalid_argument(fmt::format("can't run {}: {}", command[0], std::strerror(error)));
  }
  if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
  if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  return outcome;
}

}  // namespace kvquant::cli
