// A copy of scattered memory of the host in one piece, with the addresses that it will have on a
// device. Used twice in the same way: what is asked for first is noted, then the image is placed,
// and the same calls in the same order give addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace kvquant {

// `count` rows of `size` floats, `stride` apart on the host, without gaps in the image.
struct HostRows {
  int64_t count = 0;
  int64_t size = 0;
  int64_t stride = 0;
};

class CudaImage {
 public:
  // Of what the host has there; the same for every call with this address. Null stays null.
  const void* address(const void* host, int64_t num_bytes);
  // Of a list of the addresses of items, num_bytes each.
  const void* const* list(std::span<const void* const> items, int64_t num_bytes);
  const float* input_rows(const float* host, const HostRows& rows);
  float* output_rows(float* host, const HostRows& rows);

  // Between the first and the second use: lays everything out from `base` on, 64-byte aligned.
  void place(std::byte* base);
  // After place(nullptr) or place(base). Outputs are the last bytes.
  int64_t num_bytes() const { return num_bytes_; }
  int64_t first_output() const { return first_output_; }

  // After the second use: everything but outputs, into memory of first_output() bytes.
  void fill(std::byte* memory) const;
  // Outputs to where they belong; `outputs` begins at first_output().
  void read_back(const std::byte* outputs) const;

 private:
  struct Piece {
    const void* host;
    int64_t num_bytes;
    int64_t offset;
  };
  struct List {
    std::vector<const void*> addresses;
    int64_t offset;
  };
  struct Rows {
    const float* input;
    float* output;
    HostRows rows;
    int64_t offset;
  };
  float* add_rows(const Rows& rows, std::vector<Rows>& all, size_t& next);

  std::byte* base_ = nullptr;
  bool is_placed_ = false;
  int64_t num_bytes_ = 0, first_output_ = 0;
  std::vector<Piece> pieces_;
  std::unordered_map<const void*, size_t> piece_of_;
  std::vector<List> lists_;
  std::vector<Rows> inputs_, outputs_;
  size_t next_list_ = 0, next_input_ = 0, next_output_ = 0;
};

}  // namespace kvquant
