#include "base/buffer.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
// Smaller buffers are left alone: what they gain is not worth the system call.
constexpr size_t kLeastCollapsedBytes = size_t{256} << 10;
// MADV_COLLAPSE of Linux 6.1, which C libraries of that time have no name for.
constexpr int kMadviseCollapse = 25;

// Makes huge pages of those that hold a buffer and its neighbours, where all of them are mapped
// side by side; the last of the neighbours brings it about. A hint: failure changes speed only.
// Matrices of 1 MB are read at 20 GB/s in small pages, at 30 in huge ones (one core of Zen 4),
// because the hardware prefetches within a page.
void collapse_pages(void* data, size_t num_bytes) {
  auto* bytes = static_cast<std::byte*>(data);
  bytes -= reinterpret_cast<uintptr_t>(data) % kHugePageBytes;
  const auto* end = static_cast<std::byte*>(data) + num_bytes;
  for (; bytes < end; bytes += kHugePageBytes) madvise(bytes, kHugePageBytes, kMadviseCollapse);
}

}  // namespace

void* allocate_aligned(size_t num_bytes) {
  const bool huge = num_bytes >= 2 * kHugePageBytes;
  const size_t alignment = huge ? kHugePageBytes : kBufferAlignment;
  const size_t rounded = (num_bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  void* data = rounded < num_bytes ? nullptr : std::aligned_alloc(alignment, rounded);
  if (data == nullptr) {
    throw OutOfMemory("out of memory: " + std::to_string(num_bytes) + " bytes were asked for");
  }
  if (huge) madvise(data, rounded, MADV_HUGEPAGE);  // a hint: failure changes speed only
  std::memset(data, 0, rounded);
  if (!huge && rounded >= kLeastCollapsedBytes) collapse_pages(data, rounded);
  return data;
}

void free_aligned(void* data) noexcept { std::free(data); }

void throw_buffer_size(int64_t size, size_t element_bytes) {
  throw OutOfMemory("out of memory: " + std::to_string(size) + " elements of " +
                    std::to_string(element_bytes) + " bytes were asked for");
}

}  // namespace kvquant
