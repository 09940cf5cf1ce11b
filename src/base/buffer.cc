#include "base/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

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
  return data;
}

void free_aligned(void* data) noexcept { std::free(data); }

void throw_buffer_size(int64_t size, size_t element_bytes) {
  throw OutOfMemory("out of memory: " + std::to_string(size) + " elements of " +
                    std::to_string(element_bytes) + " bytes were asked for");
}

}  // namespace kvquant
