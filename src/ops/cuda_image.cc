#include "ops/cuda_image.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace kvquant {
namespace {

int64_t row_bytes(const HostRows& rows) { return rows.size * static_cast<int64_t>(sizeof(float)); }

}  // namespace

const void* CudaImage::address(const void* host, int64_t num_bytes) {
  if (host == nullptr || num_bytes == 0) return nullptr;
  const auto [found, is_new] = piece_of_.try_emplace(host, pieces_.size());
  if (!is_placed_) {
    if (is_new) pieces_.push_back({host, 0, 0});
    Piece& piece = pieces_[found->second];
    piece.num_bytes = std::max(piece.num_bytes, num_bytes);
    return nullptr;
  }
  assert(!is_new);
  return base_ + pieces_[found->second].offset;
}

const void* const* CudaImage::list(std::span<const void* const> items, int64_t num_bytes) {
  if (items.empty()) return nullptr;
  if (!is_placed_) {
    for (const void* item : items) address(item, num_bytes);
    lists_.push_back({std::vector<const void*>(items.size()), 0});
    return nullptr;
  }
  List& list = lists_[next_list_++];
  assert(list.addresses.size() == items.size());
  for (size_t i = 0; i < items.size(); ++i) list.addresses[i] = address(items[i], num_bytes);
  return reinterpret_cast<const void* const*>(base_ + list.offset);
}

float* CudaImage::add_rows(const Rows& rows, std::vector<Rows>& all, size_t& next) {
  if (rows.rows.count == 0) return nullptr;
  if (!is_placed_) {
    all.push_back(rows);
    return nullptr;
  }
  return reinterpret_cast<float*>(base_ + all[next++].offset);
}

const float* CudaImage::input_rows(const float* host, const HostRows& rows) {
  return add_rows({host, nullptr, rows, 0}, inputs_, next_input_);
}

float* CudaImage::output_rows(float* host, const HostRows& rows) {
  return add_rows({nullptr, host, rows, 0}, outputs_, next_output_);
}

void CudaImage::place(std::byte* base) {
  base_ = base;
  is_placed_ = true;
  next_list_ = next_input_ = next_output_ = 0;
  num_bytes_ = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = num_bytes_;
    num_bytes_ += (bytes + 63) / 64 * 64;
    return offset;
  };
  for (Piece& piece : pieces_) piece.offset = take(piece.num_bytes);
  for (List& list : lists_) list.offset = take(std::ssize(list.addresses) * 8);
  for (Rows& rows : inputs_) rows.offset = take(rows.rows.count * row_bytes(rows.rows));
  first_output_ = num_bytes_;
  for (Rows& rows : outputs_) rows.offset = take(rows.rows.count * row_bytes(rows.rows));
}

void CudaImage::fill(std::byte* memory) const {
  for (const Piece& piece : pieces_) {
    std::memcpy(memory + piece.offset, piece.host, static_cast<size_t>(piece.num_bytes));
  }
  for (const List& list : lists_) {
    std::memcpy(memory + list.offset, list.addresses.data(), list.addresses.size() * 8);
  }
  for (const Rows& rows : inputs_) {
    const auto bytes = static_cast<size_t>(row_bytes(rows.rows));
    std::byte* to = memory + rows.offset;
    for (int64_t i = 0; i < rows.rows.count; ++i, to += bytes) {
      std::memcpy(to, rows.input + i * rows.rows.stride, bytes);
    }
  }
}

void CudaImage::read_back(const std::byte* outputs) const {
  for (const Rows& rows : outputs_) {
    const auto bytes = static_cast<size_t>(row_bytes(rows.rows));
    const std::byte* from = outputs + (rows.offset - first_output_);
    for (int64_t i = 0; i < rows.rows.count; ++i, from += bytes) {
      std::memcpy(rows.output + i * rows.rows.stride, from, bytes);
    }
  }
}

}  // namespace kvquant
