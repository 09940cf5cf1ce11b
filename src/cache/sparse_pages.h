// Which page an entry of blocked sparse storage is in. Pages get larger as the list gets longer, so
// that what is unused stays below an eighth (or one page of 512 entries), and an append that needs
// a new page is rare where there are many:
//
//   entries           page size   pages
//       0 ..  8191          512    0 .. 15
//    8192 .. 16383         1024   16 .. 23
//   16384 .. 32767         2048   24 .. 31
//   32768 ..               4096   32 ..
#pragma once

#include <cstdint>

namespace kvquant {

struct SparsePagePlace {
  int64_t page = 0;  // which page
  int64_t i = 0;     // the entry's place in it
  int64_t size = 0;  // entries of that page
};

// Requires: entry >= 0.
constexpr SparsePagePlace sparse_page_of(int64_t entry) {
  if (entry >= 32768) return {24 + entry / 4096, entry % 4096, 4096};
  if (entry >= 16384) return {16 + entry / 2048, entry % 2048, 2048};
  if (entry >= 8192) return {8 + entry / 1024, entry % 1024, 1024};
  return {entry / 512, entry % 512, 512};
}

// Entries of the first `num_pages` pages together.
constexpr int64_t sparse_pages_capacity(int64_t num_pages) {
  if (num_pages >= 32) return (num_pages - 24) * 4096;
  if (num_pages >= 24) return (num_pages - 16) * 2048;
  if (num_pages >= 16) return (num_pages - 8) * 1024;
  return num_pages * 512;
}

}  // namespace kvquant
