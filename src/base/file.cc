#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "kvquant/error.h"

namespace kvquant {
namespace {

[[noreturn]] void throw_errno(const std::string& what, const std::string& path) {
  const int code = errno;
  const std::string message = what + " " + path + ": " + std::strerror(code);
  if (code == ENOSPC || code == EDQUOT) throw OutOfMemory(message);
  throw IoError(message);
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// "PATH.tmpHOST-PROCESS": folders may be shared with other machines.
std::string temporary_path(const std::string& path) {
  constexpr size_t kMaxHost = 32;  // names of files have an end
  char host[HOST_NAME_MAX + 1] = {};
  ::gethostname(host, HOST_NAME_MAX);
  return path + ".tmp" + std::string(host).substr(0, kMaxHost) + "-" + std::to_string(::getpid());
}

// Beside the file at `path`; removed unless it has taken its place.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(temporary_path(path)) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

// Something that a new file can't take the place of: a device, a pipe. A folder is an error.
bool is_special(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return false;
  if (S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    throw_errno("can't write", path);
  }
  return !S_ISREG(info.st_mode);
}

Descriptor create(const TemporaryFile& temporary, const std::string& path) {
  const int fd = ::open(temporary.path().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) throw_errno("can't write", path);
  return Descriptor(fd);
}

void write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("can't write", path);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

// On the disk when it returns.
void fill(const TemporaryFile& temporary, const std::string& path,
          const std::function<void(const ByteSink&)>& write) {
  Descriptor fd = create(temporary, path);
  write([&](std::span<const std::byte> bytes) { write_all(fd.get(), bytes, path); });
  if (::fsync(fd.get()) != 0 && errno != EINVAL) throw_errno("can't write", path);
  if (::close(fd.release()) != 0) throw_errno("can't write", path);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) throw_errno("can't open", path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) throw_errno("can't stat", path);
  if (!S_ISREG(info.st_mode)) throw IoError("can't read " + path + ": not a regular file");
  if (info.st_size == 0) return;
  const auto size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) throw_errno("can't map", path);
  bytes_ = {static_cast<const std::byte*>(data), size};
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::release_pages() const {
  if (!bytes_.empty()) {
    ::madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
  }
}

std::string read_text(const std::string& path, int64_t max_bytes) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (static_cast<int64_t>(bytes.size()) > max_bytes) {
    throw FormatError(path + ": " + std::to_string(bytes.size()) + " bytes, at most " +
                      std::to_string(max_bytes) + " are read");
  }
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_file_atomic(const std::string& path, const std::function<void(const ByteSink&)>& write) {
  if (is_special(path)) {
    const Descriptor fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (fd.get() < 0) throw_errno("can't write", path);
    return write([&](std::span<const std::byte> bytes) { write_all(fd.get(), bytes, path); });
  }
  TemporaryFile temporary(path);
  fill(temporary, path, write);
  if (::rename(temporary.path().c_str(), path.c_str()) != 0) throw_errno("can't write", path);
  temporary.keep();
}

void write_file_atomic(const std::string& path, std::string_view content) {
  write_file_atomic(path, [&](const ByteSink& sink) {
    sink(std::as_bytes(std::span(content.data(), content.size())));
  });
}

bool create_file_atomic(const std::string& path, std::string_view content) {
  const TemporaryFile temporary(path);
  fill(temporary, path, [&](const ByteSink& sink) {
    sink(std::as_bytes(std::span(content.data(), content.size())));
  });
  if (::link(temporary.path().c_str(), path.c_str()) == 0) return true;
  if (errno != EEXIST) throw_errno("can't write", path);
  return false;
}

void check_writable(const std::string& path) {
  if (is_special(path)) {
    if (::access(path.c_str(), W_OK) != 0) throw_errno("can't write", path);
    return;
  }
  const TemporaryFile temporary(path);
  create(temporary, path);
}

}  // namespace kvquant
