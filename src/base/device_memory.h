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
  void wait() const;  // until it is passed; not at all if it was never recorded
  // From `begin` to this one, which it waits for.
  double ms_since(const DeviceEvent& begin) const;

 private:
  void* handle_ = nullptr;
};

// Copies through pinned memory: those to the device go on while the host does other things. Not
// thread-safe.
class PinnedStaging {
 public:
  PinnedStaging();

  // `from` may change when it returns.
  void copy_in(void* to, const void* from, int64_t num_bytes, const DeviceStream& stream);
  // Waits for all that was queued.
  void copy_out(void* to, const void* from, int64_t num_bytes, const DeviceStream& stream);

 private:
  static constexpr int64_t kNumParts = 4;
  static constexpr int64_t kPartBytes = int64_t{4} << 20;

  std::byte* next_part();  // empty, once what was copied from it is done

  PinnedBuffer<std::byte> memory_;
  DeviceEvent copied_[kNumParts];  // the last copy from each part
  int64_t part_ = 0;
  int64_t used_ = 0;  // bytes of the part
};

// Throws DeviceError if it is not cudaSuccess (a cudaError_t).
void check_cuda(int error, const char* what);

// Throws DeviceError if the last launch could not be queued; `what` names the kernel.
void check_launch(const char* what);

}  // namespace kvquant
