// Shared arrays and launches: the three macros that a kernel writes instead of CUDA's own syntax.
#pragma once

#include "simt/runtime.h"

#include <tuple>

// SIMT_SHARED(name, float[8][9]): an array that the threads of a block share.
#define SIMT_SHARED(name, ...)                             \
  static const char name##_tag = 0;                        \
  auto& name = *static_cast<simt::Identity<__VA_ARGS__>*>( \
      simt::shared_array(&name##_tag, #name, sizeof(simt::Identity<__VA_ARGS__>)))

// SIMT_SHARED_DYN(T, name): T* name, the array whose bytes the launch gives.
#define SIMT_SHARED_DYN(T, name) T* name = static_cast<T*>(simt::dynamic_shared_array(#name))

// Never throws: a check that fails is the last error, as on the device.
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                       \
  ((void)(stream), simt::launch({#kernel, {__FILE__, __LINE__}}, kernel, (grid), (block), \
                                (shared_bytes), ##__VA_ARGS__))

namespace simt {

template <class T>
using Identity = T;

struct Named {
  const char* kernel;
  Site site;
};

// The arguments are evaluated once, here, and copied to every thread, as a launch does.
template <class... Parameters, class... Arguments>
void launch(Named name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments... arguments) {
  struct Closure {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } closure{kernel, {Parameters(arguments)...}};
  const auto body = [](void* data) {
    const Closure& closure = *static_cast<Closure*>(data);
    std::apply(closure.kernel, closure.parameters);
  };
  run({name.kernel, name.site, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
       body, &closure});
}

}  // namespace simt

// Allows a kernel more than 48 KiB of dynamic shared memory.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return simt::allow_shared_bytes(reinterpret_cast<const void*>(kernel), size_t(bytes));
}
