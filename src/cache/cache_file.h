// Cache files: one sequence of a KvCache with the ids of its tokens, so that a prompt is computed
// once. docs/formats.md ("Cache file") has every byte. A file is mapped, checked whole and copied
// into blocks of the cache; it is not read in place later.
//
// A file fits a cache of the same model, calibration, spec, mode and shape, and no other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_cache.h"

namespace kvquant {

inline constexpr uint32_t kCacheFileVersion = 3;

// What the cache itself doesn't know.
struct CacheFileInfo {
  std::string kvquant_version;    // of who writes; not compared
  std::string model_fingerprint;  // Checkpoint::fingerprint()
};

// Writes atomically; the same sequence gives the same bytes. Ends a chunk. Throws
// std::invalid_argument when `tokens` are not as many as the sequence has, or between the layers of
// a chunk; and what write_file_atomic throws.
void save_cache(KvCache& cache, KvCache::SequenceId id, std::span<const int32_t> tokens,
                const CacheFileInfo& info, const std::string& path);

struct LoadedSequence {
  KvCache::SequenceId id = 0;
  std::vector<int32_t> tokens;
};

// The file's sequence as a new one of `cache`. Throws IoError, OutOfMemory, and FormatError naming
// the path and what differs or is damaged; then the cache is as it was.
LoadedSequence load_cache(KvCache& cache, const std::string& model_fingerprint,
                          const std::string& path);

// ---- its steps

// A file's header and where its sections are; views of the file's bytes.
struct CacheFile {
  CacheFileInfo info;
  std::string calibration;  // calibration_hash, or "none"
  std::string spec, mode;
  KvShape shape;
  std::string tokens_hash;
  StoredSection tokens;
  StoredSequence sequence;
  std::vector<std::string> hashes;  // of `tokens` and of the sections of `sequence`
};

// Checks the header and that the sections fill the file; reads no section.
CacheFile parse_cache_file(std::span<const std::byte> bytes, const std::string& path);
// Throws FormatError naming the first thing in which the file doesn't fit the cache.
void check_cache_file_fits(const CacheFile& file, const KvCache& cache,
                           const std::string& model_fingerprint);
void check_cache_file_hashes(const CacheFile& file);
// Requires a file that fits. Checks every section's contents.
LoadedSequence restore_cache(KvCache& cache, const CacheFile& file);

}  // namespace kvquant
