// The functions that g++ -fsanitize=thread calls before every access, for the traced build.
#include "simt/shadow.h"

#include <cstring>

#define SIMT_CALLER __builtin_return_address(0)

#define SIMT_ACCESS(bytes)                                                                      \
  void __tsan_read##bytes(void* p) { simt::check_access(p, bytes, false, false, SIMT_CALLER); } \
  void __tsan_write##bytes(void* p) { simt::check_access(p, bytes, true, false, SIMT_CALLER); }
#define SIMT_UNALIGNED(bytes)                                \
  void __tsan_unaligned_read##bytes(void* p) {               \
    simt::check_access(p, bytes, false, false, SIMT_CALLER); \
  }                                                          \
  void __tsan_unaligned_write##bytes(void* p) {              \
    simt::check_access(p, bytes, true, false, SIMT_CALLER);  \
  }
// The two that atomics.h is made of. A load by itself only reads; the exchange writes too.
#define SIMT_ATOMICS(bits, Bits)                                                                  \
  Bits __tsan_atomic##bits##_load(const volatile Bits* p, int) {                                  \
    simt::check_access(const_cast<const Bits*>(p), sizeof(Bits), false, true, SIMT_CALLER);       \
    return *p;                                                                                    \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile Bits* p, Bits* expected, Bits value, \
                                                    int, int) {                                   \
    simt::check_access(const_cast<const Bits*>(p), sizeof(Bits), true, true, SIMT_CALLER);        \
    const Bits old = *p;                                                                          \
    if (old == *expected) {                                                                       \
      *p = value;                                                                                 \
      return 1;                                                                                   \
    }                                                                                             \
    *expected = old;                                                                              \
    return 0;                                                                                     \
  }

extern "C" {
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
SIMT_UNALIGNED(2)
SIMT_UNALIGNED(4)
SIMT_UNALIGNED(8)
SIMT_UNALIGNED(16)
SIMT_ATOMICS(32, uint32_t)
SIMT_ATOMICS(64, uint64_t)

void __tsan_read_range(void* p, size_t bytes) {
  simt::check_access(p, bytes, false, false, SIMT_CALLER);
}
void __tsan_write_range(void* p, size_t bytes) {
  simt::check_access(p, bytes, true, false, SIMT_CALLER);
}
void __tsan_init() {}
}
