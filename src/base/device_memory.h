// Memory, streams and events of the current CUDA device, owned. Only .cu files use it: without CUDA
// nothing of this is linked. Every call throws: OutOfMemory naming the size, else DeviceError.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

namespace kvquant {

void* device_allocate(int64_t num_bytes);
void device_free(void* data) noexcept;

// Host memory that is copied asynchronously without a copy in between.
void* pinned_allocate(int64_t num_bytes);
void pinned_free(void* data) noexcept;

// Makes device `index` current for the calling thread. Throws as check_device() does.
void use_device(int index);

template <class T, void* (*kAllocate)(int64_t), void (*kFree)(void*) noexcept>
class OwnedMemory {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  OwnedMemory() = default;
  explicit OwnedMemory(int64_t size)
      : data_(size > 0 ? static_cast<T*>(kAllocate(size * static_cast<int64_t>(sizeof(T))))
                       : nullptr),
        size_(size) {}

  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t num_bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  // Makes room for `size` elements; what was in it is lost when it grows.
  void reserve_discarding(int64_t size) {
    if (size <= size_) return;
    *this = OwnedMemory();  // first, so that both are never there at once
    *this = OwnedMemory(size);
  }

 private:
  struct Free {
    void operator()(T* data) const noexcept { kFree(data); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

template <class T>
using DeviceBuffer = OwnedMemory<T, device_allocate, device_free>;  // not zeroed
template <class T>
using PinnedBuffer = OwnedMemory<T, pinned_allocate, pinned_free>;

class DeviceStream {
 public:
  DeviceStream();
  ~DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  void* handle() const { return handle_; }  // a cudaStream_t
  void wait() const;                        // until everything queued so far is done

  // Queued; host memory must stay until it is done.
  void copy_to_device(void* to, const void* from, int64_t num_bytes) const;
  void copy_to_host(void* to, const void* from, int64_t num_bytes) const;
  void copy_on_device(void* to, const void* from, int64_t num_bytes) const;
  void clear(void* to, int64_t num_bytes) const;

 private:
  void* handle_ = nullptr;
};

// A point in a stream.
class DeviceEvent {
 public:
  DeviceEvent();
  ~DeviceEvent();
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;

  void record(const DeviceStream& stream);
  // From `begin` to this one, which it waits for.
  double ms_since(const DeviceEvent& begin) const;

 private:
  void* handle_ = nullptr;
};

// Throws DeviceError if the last launch could not be queued; `what` names the kernel.
void check_launch(const char* what);

}  // namespace kvquant
