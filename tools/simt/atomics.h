// Atomic read-modify-writes, relaxed as CUDA's are. They are the compiler's own __atomic builtins,
// so that ThreadSanitizer and the traced build know them for what they are. Always inlined: the
// instruction then carries the line of the kernel.
#pragma once

#include "simt/runtime.h"

#include <type_traits>

namespace simt {

// Replaces *address by update(old value); the old value.
template <class T, class Update>
__forceinline__ T atomic_update(T* address, Update update) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are of 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  Bits* bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    const T before = unpack<T>(old), after = update(before);
    const Bits wanted = Bits(pack(after));
    if (__atomic_compare_exchange_n(bits, &old, wanted, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      return before;
    }
  }
}

template <class T>
using Same = std::common_type_t<T>;  // keeps a parameter out of deduction

}  // namespace simt

#define SIMT_ATOMIC(name, expression)                                              \
  template <class T>                                                               \
  __forceinline__ T name(T* address, simt::Same<T> value) {                        \
    return simt::atomic_update(address, [value](T old) { return T(expression); }); \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicSub, old - value)
SIMT_ATOMIC(atomicMax, old > value ? old : value)
SIMT_ATOMIC(atomicMin, old < value ? old : value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicAnd, old& value)
SIMT_ATOMIC(atomicExch, ((void)old, value))
#undef SIMT_ATOMIC

template <class T>
__forceinline__ T atomicCAS(T* address, simt::Same<T> expected, simt::Same<T> value) {
  return simt::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}
