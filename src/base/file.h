// Files: read-only memory maps with bounds-checked reads, and writes that appear whole or not at
// all (temporary name in the same folder, then rename).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace kvquant {

// A whole file mapped read-only. Movable. Throws IoError naming the path when it can't be opened.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }
  // Drops the pages read so far from this process's memory; they are read again when needed.
  void release_pages() const;

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

// A whole file as text. Throws IoError, or FormatError when it is larger than `max_bytes`.
std::string read_text(const std::string& path, int64_t max_bytes = int64_t{1} << 32);

// Writes `content` to `path` atomically. Throws IoError (or OutOfMemory when the disk is full) with
// the path; then `path` is what it was before. Devices and pipes are written to, not replaced.
void write_file_atomic(const std::string& path, std::string_view content);

// The same for content too large to hold at once: `write` is called with a sink.
using ByteSink = std::function<void(std::span<const std::byte>)>;
void write_file_atomic(const std::string& path, const std::function<void(const ByteSink&)>& write);

// The same for a file that must not be there yet: returns whether it was written, not another
// process's, on this machine or another that shares the folder.
bool create_file_atomic(const std::string& path, std::string_view content);

// Throws what write_file_atomic would for lack of a folder or of permission, so that long work is
// not done in vain.
void check_writable(const std::string& path);

}  // namespace kvquant
