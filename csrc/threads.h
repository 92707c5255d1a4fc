// Threads of the OpenMP runtime that torch has loaded, and scratch memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>

namespace ffalora {

// Calls body(i) for i in 0 … count-1 on at most `threads` threads; items are handed out one by one, so order is free.
template <class Body>
void parallel_for(ptrdiff_t count, int threads, const Body& body) {
  if (threads <= 1 || count <= 1) {
    for (ptrdiff_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr failure;
  std::mutex failing;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (ptrdiff_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// One growing buffer; declare it `static thread_local`.
template <class T>
class Scratch {
 public:
  T* get(size_t count) {
    if (count > capacity_) {
      data_.reset(new T[count + kSlack]);
      capacity_ = count;
    }
    auto address = reinterpret_cast<size_t>(data_.get());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }

 private:
  static constexpr size_t kSlack = 64 / sizeof(T);
  std::unique_ptr<T[]> data_;
  size_t capacity_ = 0;
};

}  // namespace ffalora
