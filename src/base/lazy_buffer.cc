#include "base/lazy_buffer.h"

#include <sys/mman.h>

#include <string>

#include "kvquant/error.h"

namespace kvquant {

void* map_pages(size_t num_bytes) {
  void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, /*fd=*/-1, /*offset=*/0);
  if (data == MAP_FAILED) {
    throw OutOfMemory("out of memory: " + std::to_string(num_bytes) + " bytes were asked for");
  }
  return data;
}

void unmap_pages(void* data, size_t num_bytes) noexcept { munmap(data, num_bytes); }

}  // namespace kvquant
