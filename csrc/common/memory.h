// Memory of one call. Allocation never throws: `data()` is null when there is none to be had.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace slr {

class Memory {
 public:
  explicit Memory(int64_t bytes) : data_(std::aligned_alloc(64, bytes / 64 * 64 + 64)) {}
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_;
};

// Cuts one piece of memory into parts. The first round, without memory, only adds up their sizes.
class Parts {
 public:
  explicit Parts(char* data) : data_(data) {}
  template <class T>
  T* take(int64_t count) {
    char* const part = data_ == nullptr ? nullptr : data_ + size_;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(part);
  }
  int64_t size() const { return size_; }

 private:
  char* data_;
  int64_t size_ = 0;
};

}  // namespace slr
