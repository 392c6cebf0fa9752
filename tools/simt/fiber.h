// Stacks to run CUDA threads on, and what the sanitizers must be told about them.
#pragma once

#include <cstddef>

#if defined(SIMT_TSAN)
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace simt {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  Fiber(Fiber&& other) noexcept;
  ~Fiber();

  // Makes the next enter() begin at `entry`, which must never return.
  void prepare(void (*entry)());
  bool prepared() const { return stack_ != nullptr; }
  void enter();   // called off every fiber; returns when the fiber leaves
  void leave();   // called on this fiber; returns when it is entered again
  void landed();  // called first thing by `entry`
  bool owns(const void* address, size_t bytes) const;

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  void* asan_fake_stack_ = nullptr;
  void* tsan_fiber_ = nullptr;
};

// ThreadSanitizer: what it must not take for accesses of the kernel, and the order of memory.
#if defined(SIMT_TSAN)
struct Quiet {
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
inline void release(void* tag) { __tsan_release(tag); }
inline void acquire(void* tag) { __tsan_acquire(tag); }
#else
struct Quiet {
  Quiet() {}
};
inline void release(void*) {}
inline void acquire(void*) {}
#endif

}  // namespace simt
