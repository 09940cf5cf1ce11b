#include "cli/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "cli/common.h"

namespace kvquant::cli {

std::optional<std::string> LineReader::next() {
  while (!was_interrupted()) {
    const size_t newline = pending_.find('\n');
    if (newline != std::string::npos || at_end_) {
      if (pending_.empty()) return std::nullopt;
      const size_t size = std::min(newline, pending_.size());
      std::string line = pending_.substr(0, size);
      pending_.erase(0, std::min(size + 1, pending_.size()));
      return line;
    }
    // The signal may come to any thread, or just before the wait: its pipe ends it all the same.
    pollfd inputs[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_fd(), POLLIN, 0}};
    if (poll(inputs, 2, -1) < 0 && errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "cannot wait for standard input");
    }
    if (inputs[0].revents == 0) continue;
    char bytes[4096];
    const ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
    if (count > 0) pending_.append(bytes, static_cast<size_t>(count));
    if (count == 0 || (count < 0 && errno != EINTR)) at_end_ = true;
  }
  return std::nullopt;
}

}  // namespace kvquant::cli
